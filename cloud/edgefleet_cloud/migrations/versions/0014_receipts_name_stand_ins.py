"""Receipts say which variant stood in while the version itself could not answer, and how often."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    with op.batch_alter_table("receipts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("stand_in", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(
            sa.Column("stand_in_requests", sa.Integer(), nullable=False, server_default="0")
        )
