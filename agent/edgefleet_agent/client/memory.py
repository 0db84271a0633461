"""Memory that is shared with the device's workers: blocks, lent out and taken back.

A block is one sealed memfd, mapped here and known to the gateway as a slot. An input is copied into
one, unless it lies in one already; an output comes in one, and is the caller's until the last array
over it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgefleet_agent.ipc import fast, memfd

_PAGE = mmap.PAGESIZE
_READY_MAX = 8  # blocks of each direction that may wait for the next request


class Block:
    """One memfd; `uses`: requests and arrays that need it; `offered`: the gateway knows it."""

    def __init__(self, number: int, access: int, size: int) -> None:
        self.number = number
        self.access = access
        self.size = size
        self.uses = 0
        self.offered = False
        self.fd = memfd.create("edgefleet", size)
        self.map = mmap.mmap(self.fd, size)
        self.address = np.frombuffer(self.map, np.uint8).ctypes.data

    def lend(self, offset: int, size: int) -> memoryview:
        """Return a part of it; the block is in use for as long as anything looks at the part."""
        part = (ctypes.c_char * size).from_buffer(self.map, offset)
        self.uses += 1
        weakref.finalize(part, self.give_back).atexit = False
        return memoryview(part).cast("B")

    def give_back(self) -> None:
        """End one use."""
        self.uses -= 1

    def descriptor(self) -> int:
        """Return a descriptor to send, the caller's to close; for inputs one that only reads."""
        if self.access == fast.READ:
            with contextlib.suppress(OSError):  # without /proc, the other one
                return memfd.read_only(self.fd)
        return os.dup(self.fd)

    def close(self) -> None:
        """Let go of it; arrays that still look at it keep the mapping, not the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Blocks:
    """The blocks of one client; they outlive a connection and are offered anew on the next."""

    def __init__(self) -> None:
        self.limits = fast.Limits(fast.SLOTS_MAX, fast.OPEN_MAX, 2**28, 2**26)
        self.dropped: list[int] = []  # slots that the gateway still has to be told of
        self._blocks: dict[int, Block] = {}

    def connected(self, limits: fast.Limits) -> None:
        """Note that a new connection stands, which knows no slot."""
        self.limits = limits
        self.dropped.clear()
        for block in self._blocks.values():
            block.offered = False

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array of zeros that can be sent without a copy.

        Raises:
            MemoryError: There is no room for one more.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = self._new(fast.READ, max(size, 1))
        if block is None:
            raise MemoryError(f"{len(self._blocks)} buffers are in use; drop one first.")
        part = block.lend(0, size)
        part[:] = bytes(size)
        return np.frombuffer(part, dtype).reshape(shape)

    def find(self, array: np.ndarray) -> tuple[Block, int] | None:
        """Return the block of `buffer` in which an array lies whole, and where."""
        address = array.ctypes.data
        for block in self._blocks.values():
            offset = address - block.address
            inside = block.access == fast.READ and 0 <= offset <= block.size - array.nbytes
            if inside and self._known_or_room(block):
                return block, offset
        return None

    def of(self, numbers: Iterable[int]) -> list[Block]:
        """Return blocks by number, without what is no number of one."""
        return [self._blocks[n] for n in numbers if n in self._blocks]

    def take(self, access: int, size: int) -> Block | None:
        """Return a block that nobody uses, now in use; None if there is no room for one."""
        fitting = [
            b for b in self._blocks.values()
            if b.access == access and not b.uses and size <= b.size <= 4 * size + _PAGE
            and self._known_or_room(b)
        ]  # fmt: skip
        block = min(fitting, key=lambda b: b.size) if fitting else self._new(access, size)
        if block is not None:
            block.uses += 1
        return block

    def _known_or_room(self, block: Block) -> bool:
        known = sum(b.offered for b in self._blocks.values())
        return block.offered or known < self.limits.slots

    def _new(self, access: int, size: int) -> Block | None:
        size += -size % _PAGE
        ready = [b for b in self._blocks.values() if not b.uses]
        held = sum(b.size for b in self._blocks.values())
        limits = self.limits
        while ready and (
            len(self._blocks) >= limits.slots
            or held + size > limits.slot_bytes
            or len(ready) > _READY_MAX
        ):
            block = ready.pop(0)
            held -= block.size
            self.drop(block)
        if len(self._blocks) >= limits.slots or held + size > limits.slot_bytes:
            return None
        number = next(n for n in range(limits.slots) if n not in self._blocks)
        try:
            block = self._blocks[number] = Block(number, access, size)
        except OSError:
            return None
        return block

    def drop(self, block: Block) -> None:
        """Give up a block; its number is free."""
        if self._blocks.get(block.number) is block:
            del self._blocks[block.number]
        if block.offered:
            self.dropped.append(block.number)
        block.close()

    def refused(self) -> None:
        """Note that the gateway takes no more slots than it has, until the next connection."""
        known = [b for b in self._blocks.values() if b.offered]
        self.limits = self.limits._replace(slots=len(known))

    def close(self) -> None:
        """Give up all."""
        for block in list(self._blocks.values()):
            self.drop(block)
