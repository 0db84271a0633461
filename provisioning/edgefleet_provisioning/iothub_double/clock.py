"""The double's time, which a test may move."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The machine's time plus an offset."""

    def __init__(self) -> None:
        self._offset = 0.0

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return time.time() + self._offset

    def advance(self, seconds: float) -> None:
        """Move the time forward, or back by a negative number of seconds."""
        self._offset += seconds


def iso(seconds: float) -> str:
    """Return a time as the hub writes it: UTC with seven digits after the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def millis(seconds: float) -> int:
    """Return a time in milliseconds, as AMQP's timestamps count."""
    return int(seconds * 1000)
