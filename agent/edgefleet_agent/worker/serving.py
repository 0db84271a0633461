"""A worker's life: take the order, load, report, then answer frames until the socket ends."""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections.abc import Sequence

import msgspec

from edgefleet_agent.ipc import frames
from edgefleet_agent.ipc.control import MAX_FDS
from edgefleet_agent.ports import Session
from edgefleet_agent.worker import sandbox
from edgefleet_agent.worker.codec import Codec
from edgefleet_agent.worker.opening import Opened, import_code, open_model
from edgefleet_shared.errors import InvalidInputError

FLUSH_NS = 100_000
"""Finished answers wait at most this long for the next one, to leave in one system call."""

_REPARENT_S = 5.0


def main(fd: int) -> None:
    """Be a worker on the gateway's socket `fd`; returns when the work is done."""
    sock = socket.socket(fileno=fd)
    buffer = frames.FrameBuffer()
    received = _receive_order(sock, buffer)
    if received is None:
        return
    order, files = received
    _wait_for_parent(order.parent)
    sandbox.die_with_parent(order.parent)
    sandbox.close_others([fd, *files])
    import_code(order)
    sandbox.give_up_rights(len(files))
    sandbox.limit(order)
    layers = sandbox.confine(files, fatal=order.prove)
    opened = _open_gently(order, files)
    for file in files:
        os.close(file)
    body = msgspec.msgpack.encode(msgspec.structs.replace(opened.report, sandbox=layers))
    sock.sendall(frames.head(frames.REPORT, 0, 0, frames.NO_JSON, 0, len(body)) + body)
    if opened.session is not None and not order.prove:
        Loop(sock, buffer, opened.session, Codec(order.spec)).run()


def _receive_order(
    sock: socket.socket, buffer: frames.FrameBuffer
) -> tuple[frames.Order, list[int]] | None:
    files: list[int] = []
    while True:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        count, ancillary, _, _ = sock.recvmsg_into([buffer.space()], space, socket.MSG_CMSG_CLOEXEC)
        if not count:
            return None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % 4])
                files.extend(numbers)
        buffer.wrote(count)
        frame = buffer.next()
        if frame is not None:
            return msgspec.msgpack.decode(frame[5], type=frames.Order), files


def _wait_for_parent(parent: int) -> None:
    """Wait until the process between the zygote and us is gone and the gateway is our parent."""
    deadline = time.monotonic() + _REPARENT_S
    while os.getppid() != parent and time.monotonic() < deadline:
        time.sleep(0.001)


def _open_gently(order: frames.Order, files: Sequence[int]) -> Opened:
    """Load in a thread of low priority, so that nobody who is being served feels it.

    Raising a priority again needs a privilege, leaving a thread behind does not. With several
    threads onnxruntime's pool would keep the low priority for ever: then load at the normal one.
    """
    if order.threads > 1 and not order.prove:
        return open_model(order, files)
    result: list[Opened] = []

    def load() -> None:
        sandbox.lower_this_thread()
        result.append(open_model(order, files))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    if not result:
        raise RuntimeError("The loading thread ended without a result.")
    return result[0]


class Loop:
    """Answers one request after the other."""

    def __init__(
        self, sock: socket.socket, buffer: frames.FrameBuffer, session: Session, codec: Codec
    ) -> None:
        self._sock = sock
        self._buffer = buffer
        self._session = session
        self._codec = codec
        self._out: list[bytes] = []
        self._unsent_since = 0

    def run(self) -> None:
        """Serve until the gateway closes its end."""
        buffer, receive = self._buffer, self._sock.recv_into
        while True:
            while (frame := buffer.next()) is not None:
                self._serve(frame)
            if self._out:
                self._flush()
            count = receive(buffer.space())
            if not count:
                return
            buffer.wrote(count)

    def _serve(self, frame: frames.Frame) -> None:
        kind, _, number, json_length, deadline, body = frame
        if self._out and (
            kind == frames.INFER_ALONE or time.monotonic_ns() - self._unsent_since > FLUSH_NS
        ):
            self._flush()
        if deadline < time.monotonic_ns():
            status, json_length, parts, nonfinite, spent = 504, frames.NO_JSON, _TOO_LATE, False, 0
        else:
            status, json_length, parts, nonfinite, spent = self._infer(body, json_length)
        if not self._out:
            self._unsent_since = time.monotonic_ns()
        answer = frames.ANSWER_NONFINITE if nonfinite else frames.ANSWER
        length = sum(map(len, parts))
        self._out.append(frames.head(answer, status, number, json_length, spent, length))
        self._out += parts

    def _infer(self, body: memoryview, json_length: int) -> tuple[int, int, list[bytes], bool, int]:
        spent = 0
        try:
            request = self._codec.decode(body, json_length)
            begun = time.perf_counter_ns()
            found = self._session.run(request.inputs)
            spent = time.perf_counter_ns() - begun
            json_length, parts, nonfinite = self._codec.encode(request, found)
        except (InvalidInputError, ValueError) as error:
            return 400, frames.NO_JSON, [_problem(error, "invalid_request")], False, spent
        except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
            return 500, frames.NO_JSON, [_problem(error, "inference_failed")], False, spent
        return 200, json_length, parts, nonfinite, spent

    def _flush(self) -> None:
        parts, self._out = self._out, []
        self._sock.sendall(parts[0] + parts[1] if len(parts) == 2 else b"".join(parts))


def _problem(error: BaseException, code: str) -> bytes:
    text = str(error) or f"The worker failed: {type(error).__name__}."
    return msgspec.json.encode({"error": text, "code": code})


_TOO_LATE = [
    msgspec.json.encode({"error": "The deadline passed in the queue.", "code": "deadline"})
]
