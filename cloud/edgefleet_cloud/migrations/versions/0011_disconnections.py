"""Which revoked devices the broker has been rid of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    op.create_table(
        "disconnections",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("revoked", sa.String(), nullable=False),
        sa.Column("done", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("device"),
    )
