"""Which report goes to the twin, and when. Pure: time comes in, nothing is sent."""

from __future__ import annotations

import random
from collections.abc import Callable

Done = Callable[[bool], None]

BACKOFF_MIN_S = 1.0


class Reports:
    """The newest report alone waits; one that it supersedes shares its fate.

    Args:
        gap_s: Least time between two.
        backoff_max_s: Longest wait after a hub has refused one.
        clock: Seconds that only grow.
        jitter: Draws between two numbers.
    """

    def __init__(
        self,
        gap_s: float,
        backoff_max_s: float,
        clock: Callable[[], float],
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._gap_s, self._backoff_max_s = gap_s, backoff_max_s
        self._clock, self._jitter = clock, jitter
        self._backoff_s = BACKOFF_MIN_S
        self._not_before = clock()
        self._waits: bytes | None = None
        self._waiting: list[Done] = []
        self._out: bytes | None = None
        self._owed: list[Done] = []

    def put(self, sealed: bytes, done: Done) -> None:
        """Let a report wait, in place of an older one that waits."""
        self._waits = sealed
        self._waiting.append(done)

    def wait_s(self) -> float | None:
        """Return in how many seconds the next may go; None if none waits."""
        if self._waits is None:
            return None
        return max(0.0, self._not_before - self._clock())

    def take(self) -> bytes:
        """Return the one that waits; it is under way now."""
        assert self._waits is not None
        self._out, self._waits = self._waits, None
        self._owed, self._waiting = self._waiting, []
        return self._out

    def held(self) -> list[Done]:
        """The hub holds what was under way; return who is to be told so."""
        self._not_before = self._clock() + self._gap_s
        self._backoff_s = BACKOFF_MIN_S
        owed, self._owed, self._out = self._owed, [], None
        return owed

    def refused(self) -> None:
        """The hub took nothing: what was under way waits again, unless a newer one does."""
        wait = max(self._gap_s, self._jitter(self._backoff_s / 2, self._backoff_s))
        self._not_before = self._clock() + wait
        self._backoff_s = min(2 * self._backoff_s, self._backoff_max_s)
        if self._waits is None:
            self._waits = self._out
        self._waiting = self._owed + self._waiting
        self._owed, self._out = [], None

    def drop(self) -> list[Done]:
        """The connection is gone; return everyone who waits."""
        everyone = self._owed + self._waiting
        self._owed, self._waiting, self._waits, self._out = [], [], None, None
        return everyone
