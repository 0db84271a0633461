"""How often a refused message becomes an event, so that a flood of forgeries fills no disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

PERIOD_S = 60.0
PER_PERIOD = 60
REMEMBERED = 1000


class Refusals:
    """Admits one event for a device and code in a period, and not too many over all devices.

    Not safe for use from several threads at once.

    Args:
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._last: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._admitted: list[float] = []
        self._suppressed = 0

    def admit(self, device: str, code: str) -> int | None:
        """Return how many refusals went untold since the last event; None: leave this untold."""
        now = self._now()
        last = self._last.get((device, code))
        self._admitted = [then for then in self._admitted if now - then < PERIOD_S]
        if (last is not None and now - last < PERIOD_S) or len(self._admitted) >= PER_PERIOD:
            self._suppressed += 1
            return None
        self._last[device, code] = now
        self._last.move_to_end((device, code))
        while len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        self._admitted.append(now)
        untold, self._suppressed = self._suppressed, 0
        return untold
