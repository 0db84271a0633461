"""The one place that names adapters: configuration in, the whole fleet manager out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlmodel import Session

from edgefleet_cloud import migrations
from edgefleet_cloud.app import create_app
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.config import Config
from edgefleet_cloud.database import Database
from edgefleet_cloud.models.service import ModelService
from edgefleet_cloud.ports import BackgroundService, system_clock
from edgefleet_cloud.web import Parts

_log = logging.getLogger(__name__)


class Program(NamedTuple):
    """Everything that runs: the API, and what runs beside it, in order of starting."""

    app: FastAPI
    background: Sequence[BackgroundService]
    database: Database


def compose(config: Config) -> Program:
    """Build the fleet manager.

    Args:
        config: With a `listen` that is bound already, so that `api_url` is the real one.

    Raises:
        EdgeFleetError: Keys, metadata or database cannot be used.
    """
    database = open_database(config)
    events = _LoggedEvents()
    tokens = TokenService(system_clock)
    with database.write() as session:
        tokens.import_file(session, Path(config.admin_token_file))
    models = ModelService(events, system_clock)
    background: list[BackgroundService] = []
    return Program(create_app(Parts(database, tokens, models)), background, database)


def api_description() -> dict[str, Any]:
    """Return the OpenAPI document; nothing is opened for it."""
    app = create_app(Parts(Database("sqlite://")))
    return app.openapi()


def open_database(config: Config) -> Database:
    """Return the database of a configuration, its schema up to date."""
    config.data.mkdir(parents=True, exist_ok=True)
    database = Database(config.database)
    migrations.upgrade(database)
    return database


class _LoggedEvents:
    """Stands in until the events room is here."""

    def record(
        self,
        session: Session,  # noqa: ARG002 - the port's
        *,
        type: str,  # noqa: A002 - the port's
        step: str,
        subject: str,
        message: str,
        actor: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> int:
        """Log one event."""
        _log.info("%s %s %s %s %s %s", step, type, subject, actor, message, data)
        return 0
