"""Receipts say how a version took over, how long requests were held, and the memory it took."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    with op.batch_alter_table("receipts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("p50_us_during", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("way", sa.String(), nullable=False, server_default="overlap"))
        batch_op.add_column(
            sa.Column("prepared", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        for name in ("gap_us", "pause_ms", "peak_memory_kb"):
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(
            sa.Column("accelerated_pct", sa.Integer(), nullable=False, server_default="-1")
        )
