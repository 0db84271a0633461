"""The serving worker's loop: answers requests until the gateway closes the socket."""

from __future__ import annotations

import socket
import threading
import time

from edgefleet_agent.ipc import frames
from edgefleet_agent.worker.answering import TOO_LATE, Answer, Answerer
from edgefleet_agent.worker.opening import OUT_OF_MEMORY
from edgefleet_agent.worker.pace import Pace
from edgefleet_agent.worker.pool import Pool

FLUSH_NS = 100_000
"""Finished answers wait at most this long for the next one, to leave in one system call."""


class Loop:
    """Answers short runs one after the other, long ones in threads.

    Args:
        sock: The gateway's socket, blocking.
        buffer: What has been received from it.
        answerer: Answers one request.
        pace: How long the model runs.
        pool: Threads for long runs; None = one run at a time.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: frames.FrameBuffer,
        answerer: Answerer,
        pace: Pace,
        pool: Pool | None,
    ) -> None:
        self._sock = sock
        self._buffer = buffer
        self._answerer = answerer
        self._pace = pace
        self._pool = pool
        self._out: list[bytes] = []
        self._unsent_since = 0
        self._sending = threading.Lock()

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
        kind, client, number, json_length, deadline, body = frame
        pool = self._pool
        if pool is not None and (self._pace.long or not pool.idle):
            self._hand_over(pool, frame)
            return
        alone = kind & ~frames.FAST == frames.INFER_ALONE
        if self._out and (alone or time.monotonic_ns() - self._unsent_since > FLUSH_NS):
            self._flush()
        answer = self._answer(body, json_length, deadline, client)
        if not self._out:
            self._unsent_since = time.monotonic_ns()
        self._out += _framed(number, answer)

    def _answer(self, body: memoryview, json_length: int, deadline: int, client: int) -> Answer:
        if deadline < time.monotonic_ns():
            return TOO_LATE
        answer = self._answerer.answer(body, json_length, client)
        self._pace.ran(answer.spent)
        return answer

    def _flush(self) -> None:
        parts, self._out = self._out, []
        with self._sending:
            self._sock.sendall(parts[0] + parts[1] if len(parts) == 2 else b"".join(parts))

    # ------------------------------------------------------------------- long runs

    def _hand_over(self, pool: Pool, frame: frames.Frame) -> None:
        """Let a thread run it; the body stays where it was received."""
        kind, client, number, json_length, deadline, body = frame
        if self._out:
            self._flush()
        if len(body) < frames.ROOM // 4:
            body, lent = memoryview(bytes(body)), None
        else:
            lent = self._buffer.lend()

        def work(*, again: bool = True) -> None:
            answer = self._answer(body, json_length, deadline, client)
            if again and _lacks_memory(answer):
                pool.narrow()  # the package's limit is for one run at a time
                pool.put(lambda: work(again=False), alone=True)
                return
            if lent is not None:
                self._buffer.recycle(lent)
            self._send(number, answer)

        alone = kind & ~frames.FAST == frames.INFER_ALONE
        pool.put(lambda: work(again=not alone), alone=alone)

    def _send(self, number: int, answer: Answer) -> None:
        try:
            with self._sending:
                self._sock.sendall(b"".join(_framed(number, answer)))
        except OSError:
            return  # the gateway is gone; the loop sees that too


def _framed(number: int, answer: Answer) -> list[bytes]:
    kind = frames.ANSWER_NONFINITE if answer.nonfinite else frames.ANSWER
    length = sum(map(len, answer.parts))
    head = frames.head(kind, answer.status, number, answer.json_length, answer.spent, length)
    return [head, *answer.parts]


def _lacks_memory(answer: Answer) -> bool:
    text = answer.parts[0] if answer.status == 500 else b""
    return any(sign.encode() in text for sign in (*OUT_OF_MEMORY, "MemoryError"))
