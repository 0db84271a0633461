"""The slots of one assignment move together: none swaps while another's blobs are missing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from edgefleet_agent.journal import Journal, SlotRecord
from edgefleet_shared.messages import OwnersLock, SlotAssignment
from edgefleet_shared.states import DeploymentState

_FETCHING = {DeploymentState.ACCEPTED, DeploymentState.DOWNLOADING}


class Together:
    """What the newest assignment wants of every slot, and who waits for whom.

    Only blobs are waited for. A slot whose deployment is over, well or not, holds nobody up: what
    it lacks will never come.

    Args:
        journal: Where every slot stands.
        lock: Gives the device owner's lock, by which none moves at all, or None.
    """

    def __init__(self, journal: Journal, lock: Callable[[], OwnersLock | None]) -> None:
        self._journal, self._lock_now = journal, lock
        self._lock = threading.Lock()
        self._wanted: dict[str, str] = {}
        self._waiting: dict[str, Callable[[], None]] = {}

    def expect(self, slots: Mapping[str, SlotAssignment]) -> None:
        """Take up an accepted assignment, before any slot hears of it."""
        with self._lock:
            self._wanted = {n: s.deployment for n, s in slots.items() if s.mode == "run"}
        self.wake()

    def may_swap(self, name: str, nudge: Callable[[], None]) -> bool:
        """Return whether a staged slot may swap now; if not, `nudge` is called when it is to ask.

        Args:
            name: The slot.
            nudge: Called from another thread; must return at once.
        """
        with self._lock:
            self._waiting[name] = nudge  # first, so that what happens meanwhile is not missed
            others = {n: d for n, d in self._wanted.items() if n != name}
        if any(_lacks_blobs(self._journal.slot(n), d) for n, d in others.items()):
            return False
        with self._lock:
            self._waiting.pop(name, None)
        return True

    def locked(self, name: str, nudge: Callable[[], None]) -> OwnersLock | None:
        """Return the owner's lock if it holds; `nudge` is then called when to ask again."""
        with self._lock:
            self._waiting[name] = nudge  # first, as above
        lock = self._lock_now()
        if lock is None:
            with self._lock:
                self._waiting.pop(name, None)
        return lock

    def wake(self) -> None:
        """Let everyone who waits look again: something has changed."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for nudge in waiting.values():
            nudge()


def _lacks_blobs(record: SlotRecord, wanted: str) -> bool:
    deployment = record.deployment
    if wanted in record.quarantined:
        return False
    return deployment is None or deployment.id != wanted or deployment.state in _FETCHING
