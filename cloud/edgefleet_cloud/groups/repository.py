"""SQL of the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import Session, col

from edgefleet_cloud.filters import Kind, Node, Schema, condition
from edgefleet_cloud.groups.tables import GroupRow

SCHEMA = Schema({"name": Kind.TEXT, "selector": Kind.TEXT, "created": Kind.TIME})
_COLUMNS = {name: getattr(GroupRow, name) for name in SCHEMA.fields}


def statement(node: Node | None, scopes: Sequence[str] | None) -> Select[Any]:
    """Return the SELECT of a list: of the groups of these scopes, or of all (None)."""
    query = select(GroupRow)
    if scopes is not None:
        query = query.where(col(GroupRow.scope).in_(scopes))
    return query if node is None else query.where(condition(node, _COLUMNS))


def find(session: Session, name: str) -> GroupRow | None:
    """Return a group, or None."""
    return session.get(GroupRow, name)
