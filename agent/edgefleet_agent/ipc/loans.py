"""What gateway and worker share about lent connections: counters, and a slot for each connection.

The gateway makes the memory, sealed against any change of size, and sends it with the order. A slot
says at every moment what was read from its connection, what of it is answered and how much of an
answer is sent, so that the gateway can go on where a worker died. The kernel itself writes the
counts of bytes (`msg_len` of recvmmsg and sendmmsg lies in this memory): a process can be killed
between two instructions, and not within such a call.

Bytes are received into one of two buffers in turns; what is left over goes to the front of the
other one first, and one store of `WHICH` makes it current. One page of counters comes before the
slots. A worker may write anything here: `Slot.left` and `Ledger.growth` believe nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from typing import Final, NamedTuple

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.histogram import EDGES_NS

SLOTS: Final = 2
"""Connections that one worker may hold; it needs as many descriptors.

It answers one after the other. Of more, the gateway reads the next requests meanwhile and passes
answers on in bundles, which is faster.
"""

BUFFER: Final = 64 * 1024
"""Bytes of one request, and of one answer, that fit."""

PAGE: Final = 4096
SLOT_BYTES: Final = PAGE + 3 * BUFFER
AREA_BYTES: Final = PAGE + SLOTS * SLOT_BYTES

# Words (u64) of the first page.
RECALLED, GAP = 0, 1
REQUESTS, CLIENT_ERRORS, SERVER_ERRORS, NONFINITE, LATENCY_NS, COMPUTE_NS, FAILED_NS = range(2, 9)
LATENCY: Final = 16
BUCKETS: Final = len(EDGES_NS) + 1
COMPUTE: Final = LATENCY + BUCKETS
_WORDS: Final = COMPUTE + BUCKETS
_COUNTED: Final = struct.Struct(f"={_WORDS}Q")
_TOO_MUCH: Final = 1 << 50

# Words of a slot's first page; BASE and START have one of each buffer.
WHICH, BASE, START, SENDING, OUT_BYTES, STARTED, SINCE = 0, 1, 3, 5, 6, 7, 8
"""Current buffer; bytes in it before the last receive; first byte not answered; where the request
ends whose answer is being sent (0 = none is); the answer's length; since when (CLOCK_MONOTONIC ns)
a request runs, and since when one is incomplete (0 = none)."""


class Message(ctypes.Structure):
    """`struct msghdr`."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint),
        ("vector", ctypes.c_void_p), ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t), ("flags", ctypes.c_int),
    )  # fmt: skip


class Header(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = (("message", Message), ("count", ctypes.c_uint))


class Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


HEADERS: Final = (128, 256, 384)
"""Where the two receiving headers and the sending one lie in a slot, each with its vector."""
VECTOR: Final = 64
_COUNT: Final = Header.count.offset


class Left(NamedTuple):
    """What a worker left of a connection.

    Attributes:
        unread: Bytes that were received and belong to no request that is answered.
        unsent: The rest of an answer that has not gone out whole.
        begun_ns: When the request at the front of `unread` began to run; 0 = it had not.
    """

    unread: bytes
    unsent: bytes
    begun_ns: int


class Slot:
    """The shared state of one lent connection."""

    def __init__(self, area: memoryview, number: int) -> None:
        begin = PAGE + number * SLOT_BYTES
        self.begin = begin
        self.page = area[begin : begin + PAGE]
        self.words = self.page.cast("Q")
        self.counts = self.page.cast("I")
        buffers = [begin + PAGE + index * BUFFER for index in range(3)]
        self.inputs = [area[at : at + BUFFER] for at in buffers[:2]]
        self.output = area[buffers[2] : buffers[2] + BUFFER]

    def clear(self) -> None:
        """Make the slot as one of a connection from which nothing was read."""
        for index in range(SINCE + 1):
            self.words[index] = 0
        for at in HEADERS:
            self.counts[(at + _COUNT) // 4] = 0

    @property
    def running(self) -> bool:
        """Whether a request has begun to run and its answer not begun to be sent."""
        return self.words[STARTED] > 0 and not self.words[SENDING]

    @property
    def asked(self) -> bool:
        """Whether something has been read that is not answered."""
        which = self.words[WHICH] & 1
        return self.words[BASE + which] + self.count(which) > self.words[START + which]

    def count(self, header: int) -> int:
        """Return what the kernel wrote into one header: 0 and 1 = received, 2 = sent."""
        return self.counts[(HEADERS[header] + _COUNT) // 4]

    def moved(self) -> tuple[int, ...]:
        """Return words that differ whenever the worker has done something with the connection."""
        words = self.words
        return words[WHICH], *words[BASE : STARTED + 1], self.count(0), self.count(1)

    def left(self, answered: int = 0, answer: bytes = b"") -> Left:
        """Return what the worker left.

        Args:
            answered: Where the request ends that `answer` belongs to.
            answer: An answer that did not fit into the slot.

        Raises:
            InvalidInputError: The numbers cannot be true.
        """
        words, which = self.words, self.words[WHICH] & 1
        got = words[BASE + which] + self.count(which)
        start, begun = words[START + which], min(words[STARTED], time.monotonic_ns())
        sending, unsent = words[SENDING], b""
        if sending:
            start, length, sent = sending, words[OUT_BYTES], self.count(2)
            if not sent <= length <= BUFFER:
                raise InvalidInputError("The worker's count of sent bytes is wrong.")
            unsent, begun = bytes(self.output[sent:length]), 0
        elif answer:
            start, unsent, begun = answered, answer, 0
        if not start <= got <= BUFFER:
            raise InvalidInputError("The worker's count of received bytes is wrong.")
        return Left(bytes(self.inputs[which][start:got]), unsent, begun if start < got else 0)


class Area:
    """The whole shared memory of one worker, mapped."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, AREA_BYTES)
        self._view = memoryview(self.map)
        self.words = self._view[:PAGE].cast("Q")

    def slot(self, number: int) -> Slot:
        """Return one slot."""
        return Slot(self._view, number)


class Ledger:
    """Reads the counters of an area as growth since the last reading."""

    def __init__(self, area: Area) -> None:
        self._area = area
        self._last = (0,) * _WORDS

    def growth(self) -> tuple[int, ...]:
        """Return how much each word grew; `RECALLED` and `GAP` are not counters.

        Raises:
            InvalidInputError: A counter fell, or grew by more than can be.
        """
        now = _COUNTED.unpack_from(self._area.map, 0)
        grown = tuple(new - old for new, old in zip(now, self._last, strict=True))
        if not all(0 <= grown[index] < _TOO_MUCH for index in _COUNTERS):
            raise InvalidInputError("The worker's counters are wrong.")
        self._last = now
        return grown

    def gap(self, *, restart: bool) -> int:
        """Return the longest gap, nanoseconds, and start it afresh if asked to."""
        gap = self._area.words[GAP]
        if restart:
            self._area.words[GAP] = 0
        return gap if gap < _TOO_MUCH else 0


_COUNTERS: Final = range(REQUESTS, _WORDS)


def make_area() -> int:
    """Return the descriptor of fresh shared memory whose size is final."""
    fd = os.memfd_create("loans", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, AREA_BYTES)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
