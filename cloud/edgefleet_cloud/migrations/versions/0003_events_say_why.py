"""Events say why, what was and what is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go to this schema. There is no way back but a backup."""
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("reason", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("before", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("after", sa.JSON(none_as_null=True), nullable=True))
