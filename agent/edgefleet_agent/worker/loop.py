"""The serving worker's loop: answers requests until the gateway closes the socket."""

from __future__ import annotations

import array
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Final

from edgefleet_agent.ipc import frames, loans
from edgefleet_agent.worker.answering import TOO_LATE, Answer, Answerer
from edgefleet_agent.worker.calls import OUT_OF_MEMORY
from edgefleet_agent.worker.lent import Desk, Lent
from edgefleet_agent.worker.lent_frames import LentFrames, Mine
from edgefleet_agent.worker.lent_http import Heads
from edgefleet_agent.worker.pace import Pace
from edgefleet_agent.worker.pool import Pool

_ROOM_FOR_DESCRIPTORS: Final = socket.CMSG_SPACE(16 * 4)

FLUSH_NS = 100_000
"""Finished answers wait at most this long for the next one, to leave in one system call."""

EAGER_NS: Final = 100_000
"""So long the next request of a lent connection is waited for awake: waking costs 20 to 50 us.

Only if the one before came as quickly, and where another core is left for who asks.
"""


class Loop:
    """Answers short runs one after the other, long ones in threads.

    Args:
        sock: The gateway's socket, blocking.
        buffer: What has been received from it.
        answerer: Answers one request.
        pace: How long the model runs.
        pool: Threads for long runs; None = one run at a time.
        area: Memory for lent connections; None = none is lent.
        heads: Reads the heads of their requests.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: frames.FrameBuffer,
        answerer: Answerer,
        pace: Pace,
        pool: Pool | None,
        area: loans.Area | None = None,
        heads: Heads | None = None,
    ) -> None:
        self._sock = sock
        self._buffer = buffer
        self._answerer = answerer
        self._pace = pace
        self._pool = pool
        self._out: list[bytes] = []
        self._unsent_since = 0
        self._sending = threading.Lock()
        self._descriptors: deque[int] = deque()  # came with frames that are not read yet
        self._lent: dict[int, Lent] = {}  # by descriptor
        self._behind: set[int] = set()  # of those, which have something left to answer
        self._eager = False  # the last request of a lent connection came at once
        self._alone = len(os.sched_getaffinity(0)) < 2
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)
        self._desk: Desk | None = None
        self._mine = Mine(heads.spec) if heads is not None else None
        if area is not None and heads is not None:
            self._desk = Desk(area, answerer, heads, pace, self._give_back)

    def run(self) -> None:
        """Serve until the gateway closes its end."""
        link = self._sock.fileno()
        while self._receive():
            while self._lent:
                ready = [fd for fd, _ in self._wait()]
                assert self._desk is not None
                self._desk.round_ns = time.monotonic_ns()
                turns = [*ready, *self._behind.difference(ready)]
                if not all(self._on_event(fd, link) for fd in turns):
                    return

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for the next request, awake if it is to be expected at once."""
        poll = self._epoll.poll
        if self._behind or self._alone:
            return poll(0 if self._behind else None)
        begun = time.monotonic_ns()
        while self._eager:
            if ready := poll(0):
                return ready
            self._eager = time.monotonic_ns() - begun < EAGER_NS
        ready = poll(None)
        self._eager = time.monotonic_ns() - begun < EAGER_NS
        return ready

    def _on_event(self, fd: int, link: int) -> bool:
        """Serve one descriptor; return False at the end of the gateway's socket."""
        if fd == link:
            return self._receive()
        lent = self._lent.get(fd)
        if lent is not None:
            if lent.readable():
                self._behind.add(fd)
            else:
                self._behind.discard(fd)
            if self._pace.long:
                self._recall(frames.ALL, frames.SLOW)
        return True

    def _receive(self) -> bool:
        """Receive from the gateway and serve each whole frame; return False at the end."""
        buffer = self._buffer
        count, ancillary, _, _ = self._sock.recvmsg_into(
            [buffer.space()], _ROOM_FOR_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._descriptors.extend(numbers)
        buffer.wrote(count)
        while (frame := buffer.next()) is not None:
            if frame[0] == frames.LEND:
                self._take(frame[2], frame[1])
            elif frame[0] == frames.RECALL:
                self._recall(frame[2], frames.RECALLED)
            else:
                self._serve(frame)
        if self._out:
            self._flush()
        return bool(count)

    # ------------------------------------------------------------------- lent connections

    def _take(self, number: int, client: int) -> None:
        """Take a connection; without its descriptor (there were too many) it goes back.

        `client` is that of the fast path, 0 for HTTP.
        """
        if not self._descriptors or self._desk is None:
            self._send_frame(frames.head(frames.RETURN, frames.RECALLED, number, 0, 0, 0))
            return
        fd = self._descriptors.popleft()
        if client and self._mine is not None:
            lent: Lent = LentFrames(self._desk, number, fd, client, self._mine)
        else:
            lent = Lent(self._desk, number, fd)
        self._lent[lent.fd] = lent
        self._epoll.register(lent.fd, select.EPOLLIN)

    def _recall(self, number: int, reason: int) -> None:
        for lent in list(self._lent.values()):
            if number in {frames.ALL, lent.number}:
                self._give_back(lent.number, reason, 0, b"")

    def _give_back(self, number: int, reason: int, end: int, answer: bytes) -> None:
        (lent,) = [one for one in self._lent.values() if one.number == number]
        del self._lent[lent.fd]
        self._behind.discard(lent.fd)
        self._epoll.unregister(lent.fd)
        lent.close()
        head = frames.head(frames.RETURN, reason, number, end, 0, len(answer))
        self._send_frame(head + answer)

    # ------------------------------------------------------------------- the gateway's requests

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
        self._out += framed(number, answer)

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
        body, lent = self._buffer.keep(body)

        def work(*, again: bool = True) -> None:
            answer = self._answer(body, json_length, deadline, client)
            if again and lacks_memory(answer):
                pool.narrow()  # the package's limit is for one run at a time
                pool.put(lambda: work(again=False), alone=True)
                return
            if lent is not None:
                self._buffer.recycle(lent)
            self._send_frame(b"".join(framed(number, answer)))

        alone = kind & ~frames.FAST == frames.INFER_ALONE
        pool.put(lambda: work(again=not alone), alone=alone)

    def _send_frame(self, data: bytes) -> None:
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError:
            return  # the gateway is gone; the loop sees that too


def framed(number: int, answer: Answer) -> list[bytes]:
    """Return the frame of an answer, in parts."""
    kind = frames.ANSWER_NONFINITE if answer.nonfinite else frames.ANSWER
    length = sum(map(len, answer.parts))
    head = frames.head(kind, answer.status, number, answer.json_length, answer.spent, length)
    return [head, *answer.parts]


def lacks_memory(answer: Answer) -> bool:
    """Tell whether a run failed because it would have needed more memory than there was."""
    text = answer.parts[0] if answer.status == 500 else b""
    return any(sign.encode() in text for sign in (*OUT_OF_MEMORY, "MemoryError"))
