"""One connection that the gateway has lent: receive, answer, send, all of it on the record.

The record is the connection's slot in shared memory (`ipc.loans`), in such an order that the
gateway could go on from any instruction that this process may be killed at.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from typing import Final

from edgefleet_agent.ipc import frames, loans
from edgefleet_agent.ipc.http1 import DEADLINE_KEY
from edgefleet_agent.worker.answering import Answer, Answerer
from edgefleet_agent.worker.lent_http import HEAD_MAX_BYTES, Heads, response
from edgefleet_agent.worker.pace import Pace
from edgefleet_shared.histogram import bucket

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg, _sendmmsg = _libc.recvmmsg, _libc.sendmmsg
_ONE, _NOW = ctypes.c_uint(1), ctypes.c_int(socket.MSG_DONTWAIT)
_QUIETLY = ctypes.c_int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_BLANK_LINE: Final = b"\r\n\r\n"

TURN_NS: Final = 2_000_000
"""After so long it is another's turn: the gateway's, or the next connection's."""


class Desk:
    """What all lent connections of a worker share.

    Args:
        area: The shared memory.
        answerer: Answers one request.
        heads: Reads heads of requests.
        pace: How long the model runs.
        give_back: Called with a slot's number, the reason, and for an answer that did not fit
            where its request ends and the answer.
    """

    def __init__(
        self,
        area: loans.Area,
        answerer: Answerer,
        heads: Heads,
        pace: Pace,
        give_back: Callable[[int, int, int, bytes], None],
    ) -> None:
        self.area = area
        self.words = area.words
        self.find = area.map.find
        self.answerer = answerer
        self.heads = heads
        self.pace = pace
        self.give_back = give_back
        self.round_ns = 0  # when the loop last woke
        self._mark_ns = 0  # when the last request was answered

    def count(self, answer: Answer, arrived_ns: int) -> None:
        """Count an answer that is sent."""
        words, now, spent = self.words, time.monotonic_ns(), answer.spent
        latency = now - arrived_ns
        if answer.status == 200:
            words[loans.REQUESTS] += 1
            words[loans.LATENCY_NS] += latency
            words[loans.COMPUTE_NS] += spent
            words[loans.LATENCY + bucket(latency)] += 1
            words[loans.COMPUTE + bucket(spent)] += 1
            if answer.nonfinite:
                words[loans.NONFINITE] += 1
        else:
            words[loans.FAILED_NS] += latency
            words[loans.CLIENT_ERRORS if answer.status < 500 else loans.SERVER_ERRORS] += 1
        gap = now - max(self._mark_ns, self.round_ns)
        words[loans.GAP] = max(words[loans.GAP], gap)
        self._mark_ns = now


class Lent:
    """A lent connection.

    Args:
        desk: What it shares with the others.
        number: Its slot.
        fd: The connection, now this object's.
    """

    def __init__(self, desk: Desk, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        self._desk = desk
        self._slot = desk.area.slot(number)
        self._words = self._slot.words
        self._counts = self._slot.counts
        self._which = 0
        self._left = b""  # received and not answered, of the current buffer
        self._at, self._total = 0, 0  # what of that buffer waits for this connection's next turn
        self._arrived_ns = 0  # when that was received
        area = ctypes.addressof(ctypes.c_char.from_buffer(desk.area.map)) + self._slot.begin
        self._vectors: list[loans.Vector] = []
        self._calls: list[tuple[object, ...]] = []
        for index, at in enumerate(loans.HEADERS):
            buffer = area + loans.PAGE + index * loans.BUFFER
            flags = _NOW if index < 2 else _QUIETLY
            self._point(at, area, buffer)
            header = ctypes.c_void_p(area + at)
            extra = (None,) if index < 2 else ()
            self._calls.append((ctypes.c_int(fd), header, _ONE, flags, *extra))
        self._bases = [area + loans.PAGE + index * loans.BUFFER for index in range(2)]

    def _point(self, at: int, area: int, buffer: int) -> None:
        """Make one header of the slot point at its buffer."""
        header = loans.Header.from_address(area + at)
        ctypes.memset(area + at, 0, ctypes.sizeof(header))
        vector = loans.Vector.from_address(area + at + loans.VECTOR)
        vector.base, vector.size = buffer, loans.BUFFER
        header.message.vector, header.message.vectors = area + at + loans.VECTOR, 1
        self._vectors.append(vector)

    def close(self) -> None:
        """Close this process's copy of the connection."""
        os.close(self.fd)

    def readable(self) -> bool:
        """Receive what has come and answer what is whole, for one turn.

        Returns:
            Whether something is left to be answered at the next turn; then nothing is received.
        """
        if self._desk.words[loans.RECALLED]:
            self._desk.give_back(self.number, frames.RECALLED, 0, b"")
            return False
        turn, start, total = time.monotonic_ns(), self._at, self._total
        if start == total:
            start, total = 0, self._receive()
            self._arrived_ns = time.monotonic_ns()
        while start < total:
            end = self._serve(start, total, self._arrived_ns)
            if end < 0:
                return False
            if not end:
                self._wait_for_more(start, total)
                return False
            start = end
            if start < total and time.monotonic_ns() - turn > TURN_NS:
                self._at, self._total = start, total
                return True
        self._at = self._total = 0
        if total > 0:
            self._left = b""
        return False

    def _wait_for_more(self, start: int, total: int) -> None:
        """Keep the beginning of a request."""
        self._left = bytes(self._slot.inputs[self._which][start:total])
        self._at = self._total = 0
        if not self._words[loans.SINCE]:
            self._words[loans.SINCE] = self._arrived_ns

    def _receive(self) -> int:
        """Receive into the other buffer, behind what is left over; return how much is there.

        Returns:
            Bytes in the buffer; -1 if there is nothing to do now.
        """
        which, left = 1 - self._which, len(self._left)
        words, slot = self._words, self._slot
        if left:
            slot.inputs[which][:left] = self._left
        vector = self._vectors[which]
        vector.base, vector.size = self._bases[which] + left, loans.BUFFER - left
        words[loans.BASE + which] = left
        words[loans.START + which] = 0
        self._counts[_COUNTS[which]] = 0
        words[loans.WHICH] = self._which = which
        if _recvmmsg(*self._calls[which]) < 1:
            if ctypes.get_errno() not in _AGAIN:
                self._desk.give_back(self.number, frames.ENDED, 0, b"")
            return -1
        got = self._counts[_COUNTS[which]]
        if not got:
            self._desk.give_back(self.number, frames.ENDED, 0, b"")
            return -1
        return left + got

    def _serve(self, start: int, total: int, arrived_ns: int) -> int:
        """Answer the request that begins at `start`.

        Returns:
            Where it ends; 0 if it is not whole, -1 if the connection is given back.
        """
        desk, which = self._desk, self._which
        at = self._slot.begin + loans.PAGE + which * loans.BUFFER
        found = desk.find(_BLANK_LINE, at + start, at + total) - at
        if found < 0:
            if total - start > HEAD_MAX_BYTES:
                return self._away(frames.ODD)
            return 0
        data = self._slot.inputs[which]
        plain = desk.heads.read(bytes(data[start : found + 4]))
        if plain is None or desk.words[loans.RECALLED]:
            return self._away(frames.ODD if plain is None else frames.RECALLED)
        head, length, json_length = plain
        end = start + head + length
        if end > total:
            if head + length > loans.BUFFER:
                return self._away(frames.LARGE)
            return 0
        if desk.find(DEADLINE_KEY, at + start + head, at + end) >= 0:
            return self._away(frames.ODD)
        words = self._words
        words[loans.STARTED] = time.monotonic_ns()
        answer = desk.answerer.answer(data[start + head : end], json_length)
        text = response(answer)
        if len(text) > loans.BUFFER:
            desk.count(answer, arrived_ns)
            desk.give_back(self.number, frames.LARGE, end, text)
            return -1
        sent = self._send(text, end)
        desk.count(answer, arrived_ns)
        desk.pace.ran(answer.spent)
        return end if sent else self._away(frames.BLOCKED)

    def _send(self, text: bytes, end: int) -> bool:
        """Send an answer to the request that ends at `end`; return whether it went out whole."""
        words, length = self._words, len(text)
        self._slot.output[:length] = text
        self._vectors[2].size = length
        self._counts[_COUNTS[2]] = 0
        words[loans.OUT_BYTES] = length
        words[loans.SENDING] = end
        _sendmmsg(*self._calls[2])
        if self._counts[_COUNTS[2]] != length:
            return False
        words[loans.START + self._which] = end
        words[loans.STARTED] = words[loans.SINCE] = 0
        words[loans.SENDING] = 0
        return True

    def _away(self, reason: int) -> int:
        self._desk.give_back(self.number, reason, 0, b"")
        return -1


_COUNTS: Final = tuple((at + loans.Header.count.offset) // 4 for at in loans.HEADERS)
_AGAIN: Final = (11, 4)  # EAGAIN, EINTR
