"""Answers that clients do not read: how much of them is kept, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

_SWEEPS: Final = 4  # within the patience
_STEP: Final = 64 * 1024
"""A client that reads so many bytes, or all there are, in its time gets as much time again."""


class Reader(Protocol):
    """A connection whose client does not read as fast as it is answered."""

    def unsent(self) -> int:
        """Return how many bytes wait to be read."""

    def abort(self) -> None:
        """Close the connection at once."""


class _Debt:
    """What one client has to read: `size` is counted, `left` was there at `since`."""

    __slots__ = ("left", "since", "size")

    def __init__(self, since: float) -> None:
        self.size = self.left = 0
        self.since = since


class Unread:
    """All answers that have not been handed to the kernel.

    Args:
        max_bytes: How much may wait together, beyond one answer of any length.
        patience_s: How long a client may read nothing.
        clock: Seconds.
    """

    def __init__(
        self, max_bytes: int, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = 0
        self._clock = clock
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._debts: dict[Reader, _Debt] = {}  # who has waited longest comes first
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def owes(self, reader: Reader, size: int) -> None:
        """Note that so many bytes wait for a client now, which may be more than before.

        Beyond the bound those are closed who have been reading for longest.
        """
        debt, before = self._debts.get(reader), self.total
        if debt is None:
            debt = self._debts[reader] = _Debt(self._clock())
        self.total += size - debt.size
        debt.size = size
        debt.left = max(debt.left, size)
        while self.total > self._max_bytes and (len(self._debts) > 1 or before > self._max_bytes):
            self._end(next(iter(self._debts)))
        if self._timer is None and self._debts:
            self._arm()

    def paid(self, reader: Reader) -> None:
        """Forget a client that has read everything, or is gone."""
        debt = self._debts.pop(reader, None)
        if debt is not None:
            self.total -= debt.size

    def _end(self, reader: Reader) -> None:
        self.paid(reader)
        self._loop.call_soon(reader.abort)  # it may be writing just now

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._patience_s / _SWEEPS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self.look()
        if self._debts:
            self._arm()

    def look(self) -> None:
        """Close who reads nothing."""
        now = self._clock()
        for reader, debt in list(self._debts.items()):
            left = reader.unsent()
            if left <= debt.left - _STEP:
                debt.left, debt.since = left, now
            elif now - debt.since > self._patience_s:
                self._end(reader)
