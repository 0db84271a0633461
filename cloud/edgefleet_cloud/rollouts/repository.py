"""SQL of the rollouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import CursorResult, Select, func, or_, select, update
from sqlmodel import Session, col

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.repository import among, ids
from edgefleet_cloud.filters import Kind, Node, Schema, condition
from edgefleet_cloud.rollouts.decide import WITHDRAWABLE
from edgefleet_cloud.rollouts.tables import (
    FORWARD,
    DeploymentRow,
    DesiredSlotRow,
    RolloutRow,
    WaveRow,
)
from edgefleet_cloud.rollouts.visibility import touching
from edgefleet_shared.states import DONE, RolloutState

ROLLOUTS = Schema(
    dict.fromkeys(("id", "model", "version", "manifest", "state"), Kind.TEXT)
    | dict.fromkeys(("created", "started", "finished"), Kind.TIME)
)
DEPLOYMENTS = Schema(
    dict.fromkeys(
        ("id", "device", "rollout", "kind", "model", "version", "manifest", "state", "reason",
         "verdict"),
        Kind.TEXT,
    )
    | dict.fromkeys(("created", "updated"), Kind.TIME)
)  # fmt: skip
ACTIVE = (RolloutState.RUNNING.value, RolloutState.PAUSED.value)
ENDED = (RolloutState.STOPPED.value, RolloutState.SUPERSEDED.value)
"""States of a rollout that withdraws what it has not finished, and does nothing else."""
_DONE = tuple(state.value for state in DONE)


class Outline(NamedTuple):
    """What decides of one device deployment."""

    wave: int
    device: str
    state: str
    verdict: str


def rollouts(node: Node | None, scope: Scope = None) -> Select[Any]:
    """Return the SELECT of a list of rollouts, of those with a device within the scope."""
    query = select(RolloutRow).where(*touching(scope))
    columns = {name: getattr(RolloutRow, name) for name in ROLLOUTS.fields}
    return query if node is None else query.where(condition(node, columns))


def deployments(node: Node | None, scope: Scope = None) -> Select[Any]:
    """Return the SELECT of a list of device deployments within a scope."""
    query = select(DeploymentRow).where(*among(DeploymentRow.device, scope))
    columns = {name: getattr(DeploymentRow, name) for name in DEPLOYMENTS.fields}
    return query if node is None else query.where(condition(node, columns))


def of_rollout(node: Node | None, rollout: str, scope: Scope = None) -> Select[Any]:
    """Return the SELECT of the device deployments of a rollout's waves within a scope."""
    return deployments(node, scope).where(
        col(DeploymentRow.rollout) == rollout, col(DeploymentRow.kind) == FORWARD
    )


def find(session: Session, rollout: str, scope: Scope = None) -> RolloutRow | None:
    """Return a rollout with a device within the scope, or None."""
    if scope is None:
        return session.get(RolloutRow, rollout)
    found: RolloutRow | None = session.scalar(
        rollouts(None, scope).where(col(RolloutRow.id) == rollout)
    )
    return found


def find_deployment(session: Session, deployment: str, scope: Scope = None) -> DeploymentRow | None:
    """Return a device deployment within the scope, or None."""
    if scope is None:
        return session.get(DeploymentRow, deployment)
    found: DeploymentRow | None = session.scalar(
        deployments(None, scope).where(col(DeploymentRow.id) == deployment)
    )
    return found


def outside(session: Session, rollout: str, scope: Scope) -> int:
    """Return how many devices of a rollout are outside of a scope."""
    if scope is None:
        return 0
    query = select(func.count(func.distinct(DeploymentRow.device))).where(
        col(DeploymentRow.rollout) == rollout, col(DeploymentRow.device).not_in(ids(scope))
    )
    return session.scalar(query) or 0


def waves(session: Session, rollout: str) -> Sequence[WaveRow]:
    """Return the waves of a rollout, in order."""
    query = select(WaveRow).where(col(WaveRow.rollout) == rollout)
    return session.scalars(query.order_by(col(WaveRow.position))).all()


def members(
    session: Session, rollout: str, kind: str = FORWARD, scope: Scope = None
) -> Sequence[DeploymentRow]:
    """Return the device deployments of a rollout of one kind within a scope, by device."""
    query = deployments(None, scope).where(
        col(DeploymentRow.rollout) == rollout, col(DeploymentRow.kind) == kind
    )
    return session.scalars(query.order_by(col(DeploymentRow.device))).all()


def members_among(
    session: Session, rollout: str, devices: Sequence[str]
) -> Sequence[DeploymentRow]:
    """Return the deployments of a rollout's waves on these devices, by device."""
    query = of_rollout(None, rollout).where(col(DeploymentRow.device).in_(devices))
    return session.scalars(query.order_by(col(DeploymentRow.device))).all()


def outlines(session: Session, rollout: str, kind: str = FORWARD) -> Sequence[Outline]:
    """Return what decides of every device deployment of a rollout of one kind, by device.

    Thousands are looked at each second of a large rollout; whole rows would take ten times as long.
    """
    query = (
        select(DeploymentRow.wave, DeploymentRow.device, DeploymentRow.state, DeploymentRow.verdict)  # type: ignore[call-overload]  # SQLModel types a column as its value
        .where(col(DeploymentRow.rollout) == rollout, col(DeploymentRow.kind) == kind)
        .order_by(col(DeploymentRow.device))
    )
    return [Outline(*found) for found in session.execute(query)]


def counts(session: Session, rollout: str, scope: Scope = None) -> Mapping[int, Mapping[str, int]]:
    """Return how many devices of each wave, within a scope, are in each state."""
    query = (
        select(DeploymentRow.wave, DeploymentRow.state, func.count())  # type: ignore[call-overload]  # SQLModel types a column as its value
        .where(
            col(DeploymentRow.rollout) == rollout,
            col(DeploymentRow.kind) == FORWARD,
            *among(DeploymentRow.device, scope),
        )
        .group_by(DeploymentRow.wave, DeploymentRow.state)
    )
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for wave, state, count in session.execute(query):
        found[wave][state] = count
    return found


def wave_devices(
    session: Session, rollout: str, scope: Scope = None
) -> Mapping[int, Sequence[str]]:
    """Return the device ids of each wave, within a scope."""
    query = (
        select(DeploymentRow.wave, DeploymentRow.device)  # type: ignore[call-overload]  # as above
        .where(
            col(DeploymentRow.rollout) == rollout,
            col(DeploymentRow.kind) == FORWARD,
            *among(DeploymentRow.device, scope),
        )
        .order_by(col(DeploymentRow.device))
    )
    found: dict[int, list[str]] = defaultdict(list)
    for wave, device in session.execute(query):
        found[wave].append(device)
    return found


def desired(session: Session, device: str) -> Mapping[str, DeploymentRow]:
    """Return the deployment that each slot of a device should be at."""
    query = (
        select(DeploymentRow)
        .join(DesiredSlotRow, col(DesiredSlotRow.deployment) == col(DeploymentRow.id))
        .where(col(DesiredSlotRow.device) == device)
        .order_by(col(DesiredSlotRow.slot))
    )
    return {row.model: row for row in session.scalars(query)}


def desired_slot(session: Session, device: str, slot: str) -> DesiredSlotRow | None:
    """Return what a slot should run, or None."""
    return session.get(DesiredSlotRow, (device, slot))


def open_deployments(
    session: Session, model: str, devices: Iterable[str], *, but: str = ""
) -> Sequence[DeploymentRow]:
    """Return unfinished wave deployments of a model on these devices; `but` and drafts aside."""
    wanted = set(devices)
    query = (
        select(DeploymentRow)
        .join(RolloutRow, col(RolloutRow.id) == col(DeploymentRow.rollout))
        .where(
            col(DeploymentRow.model) == model,
            col(DeploymentRow.kind) == FORWARD,
            col(DeploymentRow.rollout) != but,
            col(DeploymentRow.state).not_in(_DONE),
            col(RolloutRow.state) != RolloutState.DRAFT.value,
        )
    )
    return [row for row in session.scalars(query) if row.device in wanted]


def unfinished_of(session: Session, device: str, model: str) -> Sequence[DeploymentRow]:
    """Return the unfinished deployments of one slot of a device, oldest first."""
    query = select(DeploymentRow).where(
        col(DeploymentRow.device) == device,
        col(DeploymentRow.model) == model,
        col(DeploymentRow.state).not_in(_DONE),
    )
    return session.scalars(query.order_by(col(DeploymentRow.id))).all()


def driven(session: Session) -> Sequence[str]:
    """Return the ids of rollouts in which there may be something to do, oldest first."""
    withdrawable = (
        select(DeploymentRow.rollout)  # type: ignore[call-overload]  # as above
        .where(col(DeploymentRow.state).in_(tuple(state.value for state in WITHDRAWABLE)))
        .distinct()
    )
    active = (*ACTIVE, RolloutState.ROLLING_BACK.value)
    query = (
        select(RolloutRow.id)  # type: ignore[call-overload]  # as above
        .where(
            or_(
                col(RolloutRow.state).in_(active),
                col(RolloutRow.state).in_(ENDED) & col(RolloutRow.id).in_(withdrawable),
            )
        )
        .order_by(col(RolloutRow.created))
    )
    return session.scalars(query).all()


def claim(session: Session, rollout: str, owner: str, now: str, until: str) -> bool:
    """Take or renew the lease on a rollout; return False if somebody else holds it."""
    statement = (
        update(RolloutRow)
        .where(
            col(RolloutRow.id) == rollout,
            or_(
                col(RolloutRow.lease_owner).in_(("", owner)),
                col(RolloutRow.lease_until) < now,
            ),
        )
        .values(lease_owner=owner, lease_until=until)
        .execution_options(synchronize_session=False)
    )
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
