"""The main thread's view of the owner's lock: told when it comes and goes, by hand or by time."""

from __future__ import annotations

from collections.abc import Callable

from edgefleet_agent.events import Emitter
from edgefleet_agent.reporting import Facts
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_shared.messages import OwnersLock
from edgefleet_shared.steps import Step


class Locked:
    """What the lock was when it was looked at last.

    Args:
        lock: The lock's file.
        emitter: Told of each change.
        facts: Reported while it holds, as `locked`.
        wake: Lets the slots that wait look again.
    """

    def __init__(
        self, lock: SwapLock, emitter: Emitter, facts: Facts, wake: Callable[[], None]
    ) -> None:
        self._lock, self._emitter, self._facts, self._wake = lock, emitter, facts, wake
        self._last: OwnersLock | None = None

    def look(self) -> None:
        """Look at the file; tell and wake if it is another than last time."""
        lock = self._lock.read()
        if lock == self._last:
            return
        self._last = lock
        self._facts.locked = lock
        if lock is None:
            self._emitter.tell(Step.ACTIVATE, "unlocked", "Models may change again.")
        else:
            self._emitter.tell(
                Step.ACTIVATE, "locked", str(lock), level="warning", by=lock.by, until=lock.until
            )
        self._wake()
