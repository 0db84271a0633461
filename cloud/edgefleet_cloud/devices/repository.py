"""SQL of the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlmodel import Session, col

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.tables import DECOMMISSIONED, DeviceRow
from edgefleet_cloud.filters import Kind, Node, Schema, condition
from edgefleet_cloud.hub_config import MQTT

SCHEMA = Schema(
    {
        "id": Kind.TEXT,
        "hardware": Kind.TEXT,
        "state": Kind.TEXT,
        "online": Kind.FLAG,
        "last_seen": Kind.TIME,
        "created": Kind.TIME,
        "way": Kind.TEXT,
    },
    frozenset({"labels"}),
)
_COLUMNS = {name: getattr(DeviceRow, name) for name in (*SCHEMA.fields, *SCHEMA.maps)} | {
    "way": case((col(DeviceRow.way) == "", MQTT), else_=col(DeviceRow.way))
}

IDS_AT_A_TIME = 500  # a database takes only so many values in one statement


def statement(*nodes: Scope) -> Select[Any]:
    """Return the SELECT of the devices that all of these filters mean; None means every device."""
    conditions = [condition(node, _COLUMNS) for node in nodes if node is not None]
    return select(DeviceRow).where(*conditions)


def members(*nodes: Scope) -> Select[Any]:
    """Return the SELECT of the devices that selectors mean: decommissioned ones are not."""
    return statement(*nodes).where(col(DeviceRow.state) != DECOMMISSIONED)


def ids(scope: Node) -> Select[Any]:
    """Return the SELECT of the ids of the devices in a scope, decommissioned ones too."""
    query: Select[Any] = select(DeviceRow.id)  # type: ignore[call-overload]  # SQLModel types a column as its value
    return query.where(condition(scope, _COLUMNS))


def among(column: Any, scope: Scope) -> list[ColumnElement[bool]]:
    """Return the conditions that a column of device ids stays within a scope; none for all."""
    return [] if scope is None else [column.in_(ids(scope))]


def find(session: Session, device_id: str) -> DeviceRow | None:
    """Return a device, or None."""
    return session.get(DeviceRow, device_id)


def taken(session: Session, ids: Sequence[str]) -> set[str]:
    """Return those of some ids that devices have, decommissioned ones too."""
    found: set[str] = set()
    for first in range(0, len(ids), IDS_AT_A_TIME):
        some = ids[first : first + IDS_AT_A_TIME]
        rows = select(DeviceRow.id).where(col(DeviceRow.id).in_(some))  # type: ignore[call-overload]  # SQLModel types a column as its value
        found.update(session.scalars(rows))
    return found


def on_ways(session: Session, ways: Sequence[str]) -> frozenset[str]:
    """Return the ids of the devices that are reached on some ways; '' is the broker's."""
    query = select(DeviceRow.id).where(col(DeviceRow.way).in_(ways))  # type: ignore[call-overload]  # as above
    return frozenset(session.scalars(query))


def matching(session: Session, *nodes: Scope) -> Sequence[DeviceRow]:
    """Return every device that all of these selectors mean, by id."""
    return session.scalars(members(*nodes).order_by(col(DeviceRow.id))).all()


def count(session: Session, *nodes: Scope) -> int:
    """Return how many devices selectors mean."""
    return session.scalar(select(func.count()).select_from(members(*nodes).subquery())) or 0
