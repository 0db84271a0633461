"""SQL of the event log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import Session, col

from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.filters import Kind, Node, Schema, condition

SCHEMA = Schema(
    {
        "id": Kind.NUMBER,
        "ts": Kind.TIME,
        "type": Kind.TEXT,
        "step": Kind.TEXT,
        "subject": Kind.TEXT,
        "actor": Kind.TEXT,
    }
)
_COLUMNS = {name: getattr(EventRow, name) for name in SCHEMA.fields}


def where(node: Node) -> ColumnElement[bool]:
    """Return a filter as a condition."""
    return condition(node, _COLUMNS)


def statement(node: Node | None, visible: ColumnElement[bool] | None) -> Select[Any]:
    """Return the SELECT of a list: of every event, or of those that are visible."""
    query = select(EventRow) if visible is None else select(EventRow).where(visible)
    return query if node is None else query.where(where(node))


def newest(session: Session) -> int:
    """Return the highest id; 0 if there is no event."""
    return session.scalar(select(func.max(EventRow.id))) or 0


def after(
    session: Session, last: int, node: Node | None, limit: int, visible: ColumnElement[bool] | None
) -> Sequence[EventRow]:
    """Return events with a higher id than `last`, oldest first."""
    query = statement(node, visible).where(col(EventRow.id) > last).order_by(col(EventRow.id))
    return session.scalars(query.limit(limit)).all()
