"""The one place that names adapters: configuration in, the whole fleet manager out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI

from edgefleet_cloud import migrations
from edgefleet_cloud.app import create_app
from edgefleet_cloud.auth.service import TokenService
from edgefleet_cloud.config import Config
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.groups.service import Groups
from edgefleet_cloud.models.service import ModelService
from edgefleet_cloud.ports import BackgroundService, system_clock
from edgefleet_cloud.web import Parts


class Program(NamedTuple):
    """Everything that runs: the API, and what runs beside it, in order of starting.

    `closing` ends the streams that would else stay open as long as their readers.
    """

    app: FastAPI
    background: Sequence[BackgroundService]
    database: Database
    closing: Callable[[], None]


def compose(config: Config) -> Program:
    """Build the fleet manager.

    Args:
        config: With a `listen` that is bound already, so that `api_url` is the real one.

    Raises:
        EdgeFleetError: Keys, metadata or database cannot be used.
    """
    database = open_database(config)
    feed = EventFeed()
    events = EventLog(feed)
    tokens = TokenService(system_clock)
    with database.write() as session:
        tokens.import_file(session, Path(config.admin_token_file))
    models = ModelService(events, system_clock)
    devices = Devices(events)
    groups = Groups(events, devices)
    background: list[BackgroundService] = []
    parts = Parts(database, tokens, models, events, devices, groups)
    return Program(create_app(parts), background, database, feed.close)


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
