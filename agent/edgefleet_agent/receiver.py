"""Receive: whichever way a desired document came, it is judged here and told what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgefleet_agent.events import Emitter
from edgefleet_agent.refusals import Refusals
from edgefleet_agent.reporting import Facts
from edgefleet_agent.slot import Slot
from edgefleet_agent.trust.acceptance import Acceptance, Accepted
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import Assignment
from edgefleet_shared.steps import Step


class Received(NamedTuple):
    """What came of a document: why it was refused, or what was accepted."""

    error: EdgeFleetError | None
    assignment: Assignment | None


class Receiver:
    """The main thread's way from a document to what is done about it.

    Args:
        acceptance: Judges.
        emitter: Told of refusals and downgrades.
        facts: What reports say; kept current here.
        slots: Every slot by name, as they come and go.
        apply: Has an accepted assignment done.
        changed: Called after every change that a report should show.
    """

    def __init__(
        self,
        acceptance: Acceptance,
        emitter: Emitter,
        facts: Facts,
        slots: Mapping[str, Slot],
        apply: Callable[[Accepted], None],
        changed: Callable[[], None],
    ) -> None:
        self._acceptance, self._emitter, self._facts = acceptance, emitter, facts
        self._slots, self._apply, self._changed = slots, apply, changed
        self._refusals = Refusals()

    def last(self) -> Accepted | None:
        """Return what was accepted last; power may have failed before it was begun."""
        try:
            return self._acceptance.last()
        except EdgeFleetError as error:
            self._emitter.error(Step.RECEIVE, error)
        except OSError as error:  # a full disk: what runs must run all the same
            self._emitter.tell(Step.RECEIVE, "OSError", str(error), level="error")
        return None

    def receive(self, payload: bytes) -> Received:
        """Judge a document and have it done.

        Raises:
            OSError: The disk took nothing; what was accepted before stands.
        """
        try:
            accepted = self._accept(payload)
        except EdgeFleetError as error:
            self._facts.refused = error.code
            if self._refusals.admit(payload):
                self._emitter.error(Step.RECEIVE, error)
            self._changed()
            return Received(error, None)
        self._facts.refused = ""
        for name in accepted.downgrades:
            version = accepted.assignment.slots[name].version
            text = f"{name} goes back to {version}, which is not below the security floor."
            self._emitter.tell(Step.RECEIVE, "downgrade", text, level="warning", slot=name)
        self._apply(accepted)
        self._changed()
        return Received(None, accepted.assignment)

    def look(self) -> None:
        """Take up what time or a disk has done to the trust state."""
        for name in ("stale", "floor_lost"):
            fact = getattr(self._acceptance, name)
            if self._facts.agent.get(name) != fact:
                self._facts.agent[name] = fact
                self._changed()

    def _accept(self, payload: bytes) -> Accepted:
        try:
            return self._acceptance.accept(payload)
        finally:
            # A catalog may raise floors whatever comes of the assignment.
            for slot in self._slots.values():
                slot.heed_floors()
