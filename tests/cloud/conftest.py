"""Fixtures of the fleet manager's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder


@pytest.fixture
def folder(tmp_path: Path) -> FleetFolder:
    """A fresh fleet with one model family, `digits`."""
    return FleetFolder(tmp_path / "fleet")


@pytest.fixture
def cloud(folder: FleetFolder):
    """A running fleet manager without broker and controller."""
    running = RunningCloud(folder)
    yield running
    running.stop()


@pytest.fixture
def database(tmp_path: Path):
    """A database on disk with the whole schema."""
    made = Database(f"sqlite:///{tmp_path / 'test.db'}")
    migrations.upgrade(made)
    yield made
    made.close()
