"""What Alembic runs for each command: our connection, our tables, one transaction."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlmodel.sql.sqltypes import AutoString

from edgefleet_cloud.tables import METADATA


def as_text(kind: str, item: Any, _autogenerate: object) -> str | Literal[False]:
    """Write SQLModel's own string type as plain SQLAlchemy, so that migrations stand alone."""
    return "sa.String()" if kind == "type" and isinstance(item, AutoString) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite changes a table by copying it; the first migration changes none.
    render_as_batch=context.config.attributes.get("changes", True),
    render_item=as_text,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
