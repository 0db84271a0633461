"""Registers by offset: mapped from a device that agentd has opened, or anything that acts so."""

from __future__ import annotations

import mmap
from typing import Final, Protocol

WORD: Final = 4


class MmioWindow(Protocol):
    """Words of 32 bits at offsets that are multiples of 4."""

    def read(self, offset: int) -> int:
        """Return a word."""

    def write(self, offset: int, value: int) -> None:
        """Set a word; it has reached the device when a later `read` returns."""

    def read_words(self, offset: int, count: int) -> list[int]:
        """Return words that follow one another."""

    def write_words(self, offset: int, values: list[int]) -> None:
        """Set words that follow one another, in their order."""


class MappedWindow:
    """The first map of a /dev/uio*, or a resource file of the bus: each access is one word wide.

    Args:
        fd: Open for reading and writing; may be closed afterwards.
        size: Bytes of the window.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, fd: int, size: int) -> None:
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(fd, whole, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._map).cast("I")

    def read(self, offset: int) -> int:
        """Return a word."""
        return self._words[offset // WORD]

    def write(self, offset: int, value: int) -> None:
        """Set a word."""
        self._words[offset // WORD] = value

    def read_words(self, offset: int, count: int) -> list[int]:
        """Return words, one access each: a copy in one go may use widths that a bus refuses."""
        first, words = offset // WORD, self._words
        return [words[index] for index in range(first, first + count)]

    def write_words(self, offset: int, values: list[int]) -> None:
        """Set words, one access each."""
        words = self._words
        for index, value in enumerate(values, offset // WORD):
            words[index] = value
