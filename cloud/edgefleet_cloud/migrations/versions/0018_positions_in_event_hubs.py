"""How far the events of Azure IoT Hubs were read, and what their registries hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    op.create_table(
        "iothub_partitions",
        sa.Column("hub", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("eventhub", sa.String(), nullable=False),
        sa.Column("consumer_group", sa.String(), nullable=False),
        sa.Column("partition", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("etag", sa.String(), nullable=False),
        sa.Column("modified", sa.Float(), nullable=False),
        sa.Column("offset", sa.String(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("enqueued", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("hub", "namespace", "eventhub", "consumer_group", "partition"),
    )
    op.create_table(
        "iothub_devices",
        sa.Column("hub", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("report", sa.String(), nullable=False),
        sa.Column("looked", sa.String(), nullable=False),
        sa.Column("unknown", sa.Boolean(), nullable=False),
        sa.Column("missing", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("hub", "device"),
    )
    op.create_table(
        "iothubs",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("eventhub", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("until", sa.String(), nullable=False),
        sa.Column("synced", sa.String(), nullable=False),
        sa.Column("due", sa.Boolean(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("repaired", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
