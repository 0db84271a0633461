"""Memory in which the gateway lays large bodies for one worker, which reads them there.

A socket holds some 200 kB: a body of 600 kB crosses it in several wake-ups of both processes and is
copied twice by the kernel. Here it is copied once. A frame with `frames.HELD` says where it lies,
and it lies there until the worker has answered. The worker maps it read-only, and no other worker
has it.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
from typing import Final

from edgefleet_agent.ipc.frames import NO_JSON, PLACE

BYTES: Final = 16 * 2**20
"""Of address space; pages that no body has touched take no memory."""

LEAST: Final = 64 * 1024
"""Shorter bodies go through the socket, which is quicker for them."""

_ALIGNED: Final = 64


def make() -> int:
    """Return the descriptor of fresh shared memory whose size is final."""
    fd = os.memfd_create("bodies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def read(fd: int) -> memoryview:
    """Return a worker's view of the memory, read-only."""
    return memoryview(mmap.mmap(fd, BYTES, prot=mmap.PROT_READ))


class Bodies:
    """The gateway's side: finds room, lowest first, so that few pages are ever touched.

    Args:
        fd: The memory; it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BYTES)
        self._taken: list[tuple[int, int]] = []  # begin and end, in order
        self._places: dict[int, tuple[int, int]] = {}
        self._touched = 0  # bytes from the beginning that may have pages

    @property
    def used(self) -> bool:
        """Whether a body lies here."""
        return bool(self._taken)

    def lay(self, number: int, body: bytes, json_length: int) -> bytes | None:
        """Lay a request's body down; return what its frame says, None if there is no room.

        Tensors behind its JSON are aligned, so that nobody copies them once more.
        """
        shift = 0 if json_length == NO_JSON else -json_length % _ALIGNED
        begin = self._room(shift + len(body))
        if begin < 0:
            return None
        end = begin + shift + len(body)
        self._map[begin + shift : end] = body
        place = begin, end
        bisect.insort(self._taken, place)
        self._places[number] = place
        self._touched = max(self._touched, end)
        return PLACE.pack(begin + shift, len(body))

    def _room(self, size: int) -> int:
        begin = 0
        for taken, end in self._taken:
            if taken - begin >= size:
                return begin
            begin = end + -end % _ALIGNED
        return begin if BYTES - begin >= size else -1

    def free(self, number: int) -> None:
        """Take a request's body away, if it lies here."""
        place = self._places.pop(number, None)
        if place is not None:
            self._taken.remove(place)

    def empty(self) -> None:
        """Give the pages back, once nothing lies here."""
        if self._touched and not self._taken:
            size = self._touched + -self._touched % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_REMOVE, 0, size)
            self._touched = 0
