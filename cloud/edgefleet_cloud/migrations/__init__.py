"""The schema and its history."""

from __future__ import annotations

from edgefleet_cloud.database import Database
from edgefleet_cloud.tables import METADATA


def upgrade(database: Database) -> None:
    """Bring the database's schema up to date."""
    METADATA.create_all(database.engine)
