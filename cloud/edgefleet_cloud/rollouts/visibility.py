"""What the holder of a scope may see of rollouts and of the event log."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlmodel import col

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.repository import among, ids
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.filters import Node
from edgefleet_cloud.rollouts.tables import DeploymentRow, RolloutRow

_FOR_ALL = ("models/", "trust/")
"""Subjects that every reader may see. What stands nowhere here is for those without a scope."""


def touching(scope: Scope) -> list[ColumnElement[bool]]:
    """Return the conditions that a rollout has a device within a scope."""
    if scope is None:
        return []
    return [col(RolloutRow.id).in_(_rollouts(among(DeploymentRow.device, scope)[0]))]


def events_within(scope: Node) -> ColumnElement[bool]:
    """Return the condition that an event may be seen from within a scope.

    Events of a rollout count and name its devices, so they are shown if all of them are within.
    """
    outside = _rollouts(col(DeploymentRow.device).not_in(ids(scope)))
    inside = touching(scope)[0]
    rollouts: Select[Any] = select(RolloutRow.id).where(  # type: ignore[call-overload]  # SQLModel types a column as its value
        inside, col(RolloutRow.id).not_in(outside)
    )
    return or_(
        _about("devices/", ids(scope)),
        _about("rollouts/", rollouts),
        *(col(EventRow.subject).startswith(prefix) for prefix in _FOR_ALL),
    )


def _about(prefix: str, names: Select[Any]) -> ColumnElement[bool]:
    subject = col(EventRow.subject)
    return and_(subject.startswith(prefix), func.substr(subject, len(prefix) + 1).in_(names))


def _rollouts(condition: ColumnElement[bool]) -> Select[Any]:
    query: Select[Any] = select(DeploymentRow.rollout)  # type: ignore[call-overload]  # as above
    return query.where(condition)
