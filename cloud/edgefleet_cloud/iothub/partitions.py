"""One partition of a hub's events while this process reads it, and how far behind it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from edgefleet_cloud.iothub.checkpoints import Checkpoints, Position
from edgefleet_shared.times import parse_time

SAVE_EVENTS = 100
SAVE_S = 1.0
HANDLED = 1000
"""Sequence numbers that are remembered, more than a client buffers."""


class Lag(NamedTuple):
    """How far one partition is behind.

    Attributes:
        partition: Its number.
        events: Events that are not on disk yet.
        seconds: From the newest event that is on disk to the newest that there is; 0: none is
            missing.
        here: Whether this process reads it.
    """

    partition: str
    events: int
    seconds: float
    here: bool


class Held(NamedTuple):
    """What a partition holds now, by sequence number; `last` < `first`: nothing.

    Attributes:
        first: The oldest event that is still there.
        last: The newest there ever was; -1 = none.
        last_time: When that came.
    """

    first: int
    last: int
    last_time: datetime

    @classmethod
    def of(cls, properties: Mapping[str, Any]) -> Held:
        """Read what azure-eventhub says of a partition."""
        last = int(properties["last_enqueued_sequence_number"])
        first = int(properties["beginning_sequence_number"])
        empty = bool(properties["is_empty"])
        return cls(last + 1 if empty else first, last, properties["last_enqueued_time_utc"])


def lost(position: Position, held: Held) -> int | None:
    """Return how many events after a position are there no more.

    None: the position means nothing in what the partition is now, as after a failover.
    """
    if position.sequence > held.last:
        return None
    return max(0, held.first - position.sequence - 1)


def lag(partition: str, position: Position | None, held: Held, *, here: bool) -> Lag:
    """Return how far a partition is behind, of what can still be read."""
    done = held.first - 1 if position is None else max(position.sequence, held.first - 1)
    events = max(0, held.last - done)
    seconds = 0.0
    if events and position is not None and position.enqueued:
        seconds = max(0.0, (held.last_time - parse_time(position.enqueued)).total_seconds())
    return Lag(partition, events, seconds, here)


class Partition:
    """What was handled of one partition since this process took it over.

    Its position is saved after 100 events or a second, and never ahead of what is on disk: a
    process that is killed hears at most so many again.

    Args:
        number: Its number.
        checkpoints: Where its position is saved.
        position: The one from which it is read; None = the oldest event there is.
        clock: Seconds that only grow.

    Attributes:
        position: Up to where everything was handled; None = nothing was.
        over: Whether it is somebody else's now.
    """

    def __init__(
        self,
        number: str,
        checkpoints: Checkpoints,
        position: Position | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number = number
        self.over = False
        self._checkpoints = checkpoints
        self._clock = clock
        self.position = position
        self._began = -1 if position is None else position.sequence
        self._handled: deque[int] = deque(maxlen=HANDLED)
        self._unsaved = 0
        self._saved = clock()

    def is_new(self, sequence: int) -> bool:
        """Return whether an event was not handled yet.

        A link that was mended sends some again; and the library promises no strict order, so that
        one is not old because a later one has come.
        """
        return sequence > self._began and sequence not in self._handled

    def done(self, position: Position) -> None:
        """Note that an event was handled."""
        self._handled.append(position.sequence)
        if self.position is None or position.sequence > self.position.sequence:
            self.position = position
        self._unsaved += 1

    @property
    def due(self) -> bool:
        """Return whether the position is to be saved now."""
        if not self._unsaved:
            return False
        return self._unsaved >= SAVE_EVENTS or self._clock() - self._saved >= SAVE_S

    def save(self) -> None:
        """Save the position.

        Raises:
            UnavailableError: The database does not take it now; nothing is forgotten.
        """
        if not self._unsaved or self.position is None:
            return
        self._checkpoints.save(self.number, self.position)
        self._unsaved = 0
        self._saved = self._clock()
