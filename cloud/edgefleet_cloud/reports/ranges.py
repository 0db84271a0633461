"""Which sequence numbers have arrived, kept as a few ranges. Pure.

The same numbers in any order, any number of times, give the same value: what was lost is then told
from what is late. A hole between the lowest and the highest number is missing, unless it is so wide
that a device must have lost its outbox and begun to number anew, far ahead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

MAX_RANGES = 1000
"""Beyond it the oldest holes are closed: what falls into them later counts as seen already."""

ANEW = 10**9
"""A hole at least this wide is a new beginning, not that many lost items."""

Range = tuple[int, int]


class Ranges:
    """A set of sequence numbers.

    Args:
        ranges: Inclusive (first, last) pairs in rising order that neither touch nor overlap.
        lost: Numbers in holes that were closed.
    """

    def __init__(self, ranges: Iterable[Range] = (), lost: int = 0) -> None:
        self._ranges = [(first, last) for first, last in ranges]
        self.lost = lost

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._ranges, number, key=lambda each: each[0]) - 1
        return index >= 0 and number <= self._ranges[index][1]

    def add(self, number: int) -> bool:
        """Add a number; return whether it is new."""
        index = bisect_right(self._ranges, number, key=lambda each: each[0])
        before = self._ranges[index - 1] if index else None
        after = self._ranges[index] if index < len(self._ranges) else None
        if before and number <= before[1]:
            return False
        first, last = number, number
        low, high = index, index
        if before and before[1] == number - 1:
            first, low = before[0], index - 1
        if after and after[0] == number + 1:
            last, high = after[1], index + 1
        self._ranges[low:high] = [(first, last)]
        self._close_oldest()
        return True

    @property
    def missing(self) -> int:
        """How many numbers between the lowest and the highest have not arrived."""
        return self.lost + sum(hole for hole in self._holes() if hole < ANEW)

    @property
    def beginnings(self) -> int:
        """How many times the numbers began anew."""
        return sum(hole >= ANEW for hole in self._holes())

    def to_list(self) -> list[Range]:
        """Return the ranges, for storing."""
        return list(self._ranges)

    def _holes(self) -> list[int]:
        pairs = zip(self._ranges, self._ranges[1:], strict=False)
        return [after[0] - before[1] - 1 for before, after in pairs]

    def _close_oldest(self) -> None:
        while len(self._ranges) > MAX_RANGES:
            (first, end), (start, last) = self._ranges[:2]
            hole = start - end - 1
            self.lost += hole if hole < ANEW else 0
            self._ranges[:2] = [(first, last)]
