"""A device's key is renewed: the one before it is kept for a while."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    for column in (
        sa.Column("previous_key", sa.String(), nullable=False, server_default=""),
        sa.Column("previous_until", sa.String(), nullable=True),
        sa.Column("renewal_asked", sa.String(), nullable=True),
    ):
        op.add_column("devices", column)
    for column in (
        sa.Column("pem", sa.String(), nullable=False, server_default=""),
        sa.Column("session", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("certificates", column)
