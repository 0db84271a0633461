"""Answers that nobody reads: whoever does not take them in time is closed."""

from __future__ import annotations

import asyncio

import pytest

from edgefleet_agent.gateway.unread import Unread
from edgefleet_agent.ipc import fast
from tests.agent.bounded import binary, closed, end_clients, pour, start
from tests.agent.fast_raw import SIZE, WIDE, Raw, head
from tests.agent.gateways import wait_for
from tests.agent.lent_client import GOOD, Client


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    end_clients()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A gateway with little patience."""
    one = start(tmp_path_factory.mktemp("packages"), "--timeout-s", "2")
    yield one
    one.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_who_reads_nothing_is_closed(hasty, tcp):
    """A client that asks and never reads is given the request timeout, and not for ever."""
    client = Client(hasty, tcp=tcp)
    pour(client, b"GET /metrics HTTP/1.1\r\n\r\n" * 4000)  # more than kernels keep for it
    wait_for(lambda: closed(client), "the client to be closed")
    assert hasty.infer(GOOD)[0] == 200


def test_who_reads_nothing_of_the_last_answer_is_closed(hasty):
    """Nor does a connection stay that shall end after an answer which nobody takes."""
    client = Client(hasty)
    last = binary(60_000).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    pour(client, binary(60_000) + last)
    wait_for(lambda: closed(client), "the client to be closed")


def test_frames_that_nobody_reads_end_their_client(hasty):
    """So it is on the fast path."""
    one = Raw(hasty)
    x = fast.Tensor("x", "FP32", (WIDE, 4), fast.INLINE, 0, 4 * SIZE)
    frame = fast.prefix(fast.INFER, 1, len(head(x)), 4 * SIZE) + head(x) + bytes(4 * SIZE)
    pour(one, frame * 8)
    wait_for(lambda: closed(one), "the client to be closed")
    assert hasty.infer(GOOD)[0] == 200
    one.close()


class Slow:
    """A client by hand; `left` is what it has not read."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.ended = False

    def unsent(self) -> int:
        return self.left

    def abort(self) -> None:
        self.ended = True


def test_who_reads_slowly_is_not_who_reads_nothing():
    """64 KiB in the time that there is are enough, or all of it; a byte now and then is not."""

    async def play() -> tuple[bool, bool]:
        clock = [0.0]
        unread = Unread(10**9, 1.0, lambda: clock[0])
        steady, dripping = Slow(10**6), Slow(10**6)
        unread.owes(steady, steady.left)
        unread.owes(dripping, dripping.left)
        for _ in range(10):
            clock[0] += 0.9
            steady.left -= 64 * 1024
            dripping.left -= 1
            unread.look()
            await asyncio.sleep(0)
        return steady.ended, dripping.ended

    assert asyncio.run(play()) == (False, True)
