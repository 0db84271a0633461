"""How long a model runs, as measured: long runs go to threads, short ones are done inline."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

LONG_NS: Final = 1_000_000
"""A run that takes longer is worth a thread: handing it over and back costs some 50 us."""

KEPT: Final = 9


class Pace:
    """The running median of the last nine runs.

    Args:
        first: Nanoseconds of the runs in warm-up, newest last.
        elsewhere: The model runs in another process, and a thread only waits: always worth one.
    """

    def __init__(self, first: Iterable[int], *, elsewhere: bool = False) -> None:
        self._runs: deque[int] = deque(first, KEPT)
        self._elsewhere = elsewhere
        self.long = elsewhere or self.median_ns > LONG_NS

    @property
    def median_ns(self) -> int:
        """Return the median, 0 before the first run."""
        return sorted(self._runs)[len(self._runs) // 2] if self._runs else 0

    def ran(self, spent_ns: int) -> None:
        """Take one run's time; 0, of a request that never ran, says nothing."""
        if spent_ns:
            self._runs.append(spent_ns)
            if (spent_ns > LONG_NS) != self.long:
                self.long = self._elsewhere or self.median_ns > LONG_NS
