"""What each slot of a device should run: every change is a new revision, announced at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from sqlmodel import Session

from edgefleet_cloud.ports import Clock, EventSink, Release
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.decide import WITHDRAWABLE
from edgefleet_cloud.rollouts.tables import RESTORE, DeploymentRow, DesiredSlotRow
from edgefleet_shared.identifiers import new_id
from edgefleet_shared.messages import Policy, SlotAssignment
from edgefleet_shared.states import (
    DEPLOYMENT,
    DONE_OK,
    DeploymentEvent,
    DeploymentState,
    advance,
)
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

_S, _E = DeploymentState, DeploymentEvent

Announce = Callable[[Session, Iterable[str]], None]
"""Tells devices, after the commit, what they should run now."""


class Goal(NamedTuple):
    """What a slot should run, or no longer run (`mode` stop)."""

    model: str
    version: str
    manifest: str
    size: int
    release_counter: int
    policy: dict[str, Any]
    mode: str = "run"

    @classmethod
    def of_release(cls, release: Release, policy: dict[str, Any]) -> Goal:
        """Return the goal to run a published version."""
        return cls(
            release.model,
            release.version,
            release.manifest,
            release.size,
            release.release_counter,
            policy,
        )

    @classmethod
    def of_row(cls, row: DeploymentRow, mode: str = "run") -> Goal:
        """Return the goal of a deployment."""
        return cls(
            row.model, row.version, row.manifest, row.size, row.release_counter, row.policy, mode
        )


def assignment(row: DeploymentRow) -> SlotAssignment:
    """Return a deployment as the device is told of it."""
    return SlotAssignment(
        mode="stop" if row.mode == "stop" else "run",
        deployment=row.id,
        model=row.model,
        version=row.version,
        manifest=row.manifest,
        size=row.size,
        release_counter=row.release_counter,
        rollout=row.rollout,
        policy=msgspec.convert(row.policy, Policy),
    )


def desired(session: Session, device_id: str) -> dict[str, SlotAssignment]:
    """Return what a device should run, by slot."""
    rows = repository.desired(session, device_id)
    return {slot: assignment(row) for slot, row in rows.items()}


class Slots:
    """Changes what devices should run; the caller owns the session and its commit.

    Args:
        events: Told of every change of a deployment.
        announce: Told of every device whose assignment changes.
        clock: Dates changes.
    """

    def __init__(self, events: EventSink, announce: Announce, clock: Clock) -> None:
        self._events = events
        self._announce = announce
        self._clock = clock

    def offer(self, session: Session, row: DeploymentRow, actor: str = "") -> None:
        """Make an assigned deployment what its slot should run; an older one is superseded."""
        slot = repository.desired_slot(session, row.device, row.model)
        current = repository.find_deployment(session, slot.deployment) if slot else None
        row.before = _settled(current)
        if current and _S(current.state) in WITHDRAWABLE:
            self.move(session, current, _E.SUPERSEDE, f"{row.version} is newer", actor)
        if slot is None:
            slot = DesiredSlotRow(device=row.device, slot=row.model, deployment=row.id)
        slot.deployment = row.id
        session.add(row)
        session.flush()
        session.add(slot)
        self.move(session, row, _E.OFFER, "", actor)
        self._announce(session, [row.device])

    def withdraw(
        self,
        session: Session,
        row: DeploymentRow,
        event: DeploymentEvent,
        reason: str,
        actor: str = "",
    ) -> None:
        """End a deployment that has not swapped; the slot goes back to what it was before."""
        self.move(session, row, event, reason, actor)
        if self._is_desired(session, row):
            before = Goal(**row.before) if row.before else Goal.of_row(row, "stop")
            self.restore(session, row, before, reason)

    def restore(self, session: Session, row: DeploymentRow, goal: Goal, reason: str) -> None:
        """Make `goal` what the slot of `row` should run, as a new revision of nobody's rollout."""
        self.offer(session, self.new(row.device, RESTORE, goal, reason=reason))

    def new(
        self,
        device: str,
        kind: str,
        goal: Goal,
        *,
        rollout: str = "",
        wave: int = -1,
        reason: str = "",
    ) -> DeploymentRow:
        """Return a deployment, assigned and not yet offered."""
        now = format_time(self._clock())
        return DeploymentRow(
            id=new_id(),
            created=now,
            updated=now,
            device=device,
            kind=kind,
            rollout=rollout,
            wave=wave,
            state=_S.ASSIGNED.value,
            reason=reason,
            **goal._asdict(),
        )

    def settle(self, session: Session, row: DeploymentRow, active: Goal | None) -> None:
        """After a bad end, want what the device serves now, so that desired and reported agree.

        A restore that ends badly is left as it is: a second one would fare no better.
        """
        if row.kind == RESTORE or not self._is_desired(session, row):
            return
        goal = active or Goal.of_row(row, "stop")
        self.restore(session, row, goal, f"the device serves {goal.version} after {row.state}")

    def move(
        self,
        session: Session,
        row: DeploymentRow,
        event: DeploymentEvent,
        reason: str,
        actor: str = "",
    ) -> None:
        """Advance a deployment by an event of the server's side.

        Raises:
            InvalidInputError: The table has no such transition.
        """
        state = advance(DEPLOYMENT, _S(row.state), event)
        self.enter(session, row, state, reason=reason, actor=actor)

    def enter(
        self,
        session: Session,
        row: DeploymentRow,
        state: DeploymentState,
        *,
        reason: str,
        actor: str = "",
        detail: str = "",
    ) -> None:
        """Write a deployment's new state and the event that tells of it."""
        old = row.state
        before = _described(row)
        row.state, row.updated = state.value, format_time(self._clock())
        if reason:
            row.reason = reason
        session.add(row)
        words = state.value.replace("_", " ")
        why = f" ({detail or reason})" if detail or reason else ""
        goal = f"{row.model} {row.version}" if row.mode == "run" else f"no {row.model}"
        self._events.record(
            session,
            type=f"device_deployment.{state.value}",
            step=_STEPS.get(state, Step.ACTIVATE),
            subject=f"devices/{row.device}",
            message=f"{row.device}: {goal} {words}{why}.",
            actor=actor,
            data={
                "deployment": row.id,
                "rollout": row.rollout,
                "kind": row.kind,
                "old": old,
                "new": state.value,
                "reason": reason,
                "digest": row.manifest,
                "version": row.version,
            },
            reason=reason,
            before=before,
            after={**_described(row), "detail": row.detail, "verdict": row.verdict},
        )

    def _is_desired(self, session: Session, row: DeploymentRow) -> bool:
        slot = repository.desired_slot(session, row.device, row.model)
        return slot is not None and slot.deployment == row.id


def _described(row: DeploymentRow) -> dict[str, Any]:
    return {"state": row.state, "reason": row.reason}


def _settled(current: DeploymentRow | None) -> dict[str, Any] | None:
    """Return what to go back to: the current goal if it has proved itself, else its own before."""
    if current is None:
        return None
    if _S(current.state) in DONE_OK or current.kind == RESTORE:
        return Goal.of_row(current, current.mode)._asdict()
    return current.before


_STEPS = {
    _S.ASSIGNED: Step.TARGET,
    _S.OFFERED: Step.ANNOUNCE,
    _S.ACCEPTED: Step.RECEIVE,
    _S.DOWNLOADING: Step.FETCH,
    _S.VERIFYING: Step.VERIFY,
    _S.PREPARING: Step.PREPARE,
    _S.STAGED: Step.PROVE,
    _S.SUPERSEDED: Step.TARGET,
    _S.CANCELED: Step.TARGET,
    _S.TIMED_OUT: Step.TARGET,
}
