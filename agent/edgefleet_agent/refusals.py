"""Which refused documents become an event, so that a flood of them wears no flash out."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from time import monotonic

PERIOD_S = 60.0
PER_PERIOD = 20


class Refusals:
    """Admits each document once in a row, and only so many in a period.

    Args:
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._last = ""
        self._admitted: deque[float] = deque(maxlen=PER_PERIOD)

    def admit(self, payload: bytes) -> bool:
        """Return whether the refusal of this document is to be told."""
        mark = hashlib.sha256(payload).hexdigest()
        if mark == self._last:  # retained, it comes again on each connect
            return False
        now = self._now()
        if len(self._admitted) == PER_PERIOD and now - self._admitted[0] < PERIOD_S:
            return False
        self._last = mark
        self._admitted.append(now)
        return True
