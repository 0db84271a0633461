"""SQL of the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlmodel import Session, col

from edgefleet_cloud.devices.tables import DECOMMISSIONED, DeviceRow
from edgefleet_cloud.filters import Kind, Node, Schema, condition

SCHEMA = Schema(
    {
        "id": Kind.TEXT,
        "hardware": Kind.TEXT,
        "state": Kind.TEXT,
        "online": Kind.FLAG,
        "last_seen": Kind.TIME,
        "created": Kind.TIME,
    },
    frozenset({"labels"}),
)
_COLUMNS = {name: getattr(DeviceRow, name) for name in (*SCHEMA.fields, *SCHEMA.maps)}


def statement(node: Node | None, within: Node | None = None) -> Select[Any]:
    """Return the SELECT of a list, of all devices or of those that a selector means."""
    query = select(DeviceRow) if within is None else members(within)
    return query if node is None else query.where(condition(node, _COLUMNS))


def members(node: Node) -> Select[Any]:
    """Return the SELECT of the devices that a selector means: decommissioned ones are not."""
    return statement(node).where(col(DeviceRow.state) != DECOMMISSIONED)


def find(session: Session, device_id: str) -> DeviceRow | None:
    """Return a device, or None."""
    return session.get(DeviceRow, device_id)


def matching(session: Session, node: Node) -> Sequence[DeviceRow]:
    """Return every device that a selector means, by id."""
    return session.scalars(members(node).order_by(col(DeviceRow.id))).all()


def count(session: Session, node: Node) -> int:
    """Return how many devices a selector means."""
    return session.scalar(select(func.count()).select_from(members(node).subquery())) or 0
