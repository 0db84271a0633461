"""Events are chained by hash; those of the time before, as they are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edgefleet_shared.audit import BEGINNING, Entry, row_hash

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_CHUNK = 1000


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hash", sa.String(), nullable=False, server_default=""))
    _chain()


def _chain() -> None:
    texts = ("ts", "type", "step", "subject", "actor", "message", "reason", "hash")
    documents = ("data", "before", "after")
    events = sa.table(
        "events",
        sa.column("id", sa.Integer()),
        *(sa.column(name, sa.String()) for name in texts),
        *(sa.column(name, sa.JSON(none_as_null=True)) for name in documents),
    )
    wanted = [events.c[name] for name in Entry._fields]
    connection = op.get_bind()
    last, previous = 0, BEGINNING
    while True:
        query = sa.select(*wanted).where(events.c.id > last).order_by(events.c.id).limit(_CHUNK)
        rows = connection.execute(query).all()
        for row in rows:
            entry = Entry(*row)
            last, previous = entry.id, row_hash(previous, entry)
            connection.execute(events.update().where(events.c.id == last).values(hash=previous))
        if len(rows) < _CHUNK:
            return
