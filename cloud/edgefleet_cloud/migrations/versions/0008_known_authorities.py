"""What a device was told with its certificate: which authorities are trusted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    op.add_column(
        "certificates", sa.Column("bundle", sa.String(), nullable=False, server_default="")
    )
