"""Twins of modules: of a device with IoT Edge the module's twin holds the document."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    with op.batch_alter_table("iothub_twins", schema=None) as batch_op:
        batch_op.add_column(sa.Column("module", sa.String(), nullable=False, server_default=""))
