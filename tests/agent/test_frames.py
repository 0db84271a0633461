"""Frames come out of a stream as they were sent, in whatever pieces; large tensors are aligned."""

from __future__ import annotations

import random

import numpy as np
import pytest

from edgefleet_agent.ipc import frames


def _frame(number: int, json_length: int, body: bytes) -> bytes:
    return frames.head(frames.INFER, 0, number, json_length, 0, len(body)) + body


def _fed(buffer: frames.FrameBuffer, stream: bytes, dice: random.Random, lend: bool) -> list:
    """Feed a stream in pieces of random size; return what came out, copied."""
    found, at = [], 0
    while at < len(stream):
        space = buffer.space()
        size = min(len(space), len(stream) - at, dice.choice((1, 7, 24, 500, 4096, 70_000)))
        space[:size] = stream[at : at + size]
        buffer.wrote(size)
        at += size
        while (frame := buffer.next()) is not None:
            found.append((frame[2], frame[3], bytes(frame[5])))
            if lend:
                buffer.recycle(buffer.lend())
    return found


@pytest.mark.parametrize("lend", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_stream_in_any_pieces_gives_the_frames_that_were_sent(seed, lend):
    """Small and large ones, with JSON of any length, in pieces from one byte on."""
    dice = random.Random(seed)
    sent = []
    for number in range(40):
        size = dice.choice((0, 1, 30, 5000, 65_000, 66_000, 200_001))
        length = dice.choice((frames.NO_JSON, 0, dice.randrange(size + 1)))
        sent.append((number, length, dice.randbytes(size)))
    stream = b"".join(_frame(*one) for one in sent)
    assert _fed(frames.FrameBuffer(), stream, dice, lend) == sent


@pytest.mark.parametrize("json_length", [frames.NO_JSON, 0, 1, 121, 128])
def test_a_large_tensor_is_aligned(json_length):
    """Numpy reads what stands behind the JSON without a copy, and so does a runtime."""
    buffer, body = frames.FrameBuffer(), bytes(400_000)
    behind = 0 if json_length == frames.NO_JSON else json_length
    for number in range(3):
        stream = _frame(0, frames.NO_JSON, b"{}") + _frame(number, json_length, body)
        while stream:
            space = buffer.space()
            size = min(len(space), len(stream), 50_000)
            space[:size], stream = stream[:size], stream[size:]
            buffer.wrote(size)
            while (frame := buffer.next()) is not None:
                if len(frame[5]) > 2:
                    tensor = frame[5][behind : behind + 399_800 // 8 * 8]
                    assert np.frombuffer(tensor, np.float64).flags.aligned
                    buffer.recycle(buffer.lend())
