"""Devices have a way, tickets may name one, and what twins at Azure IoT Hubs hold is known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    for table in ("devices", "tickets", "group_tickets"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("way", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "iothub_twins",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("hub", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("renew", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("changed", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.PrimaryKeyConstraint("device", "hub"),
    )
