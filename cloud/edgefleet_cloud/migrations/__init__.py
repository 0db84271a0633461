"""The schema and its history, by Alembic; brought up to date whenever the server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from edgefleet_cloud.database import Database
from edgefleet_cloud.tables import METADATA
from edgefleet_shared.errors import InvalidInputError

FOLDER = Path(__file__).parent


def upgrade(database: Database) -> None:
    """Bring the database's schema up to date, all of it or nothing.

    Raises:
        InvalidInputError: The database was made by a newer version, or is none of ours.
    """
    try:
        with database.write() as session:
            command.upgrade(settings(session.connection()), "head")
    except (CommandError, SQLAlchemyError) as error:
        raise InvalidInputError(
            f"The database {database.engine.url!r} cannot be used: {str(error)[:300]}.",
            code="configuration",
            hint="Was it made by a newer edgefleet-cloud? Then use that, or restore a backup.",
        ) from error


def differences(connection: Connection) -> list[Any]:
    """Return what the tables in the code have that the database lacks, and the reverse."""
    return list(compare_metadata(MigrationContext.configure(connection), METADATA))


def settings(connection: Connection) -> Config:
    """Return Alembic's settings for one connection; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
