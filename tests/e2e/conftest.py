"""A whole real fleet for the end-to-end tests: fleet manager, broker, two agents, 3 versions."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from edgefleet_provisioning.demo.digits import build
from edgefleet_provisioning.demo.fleet import Fleet
from edgefleet_provisioning.demo.narrator import Narrator
from tests.e2e.world import World


@pytest.fixture(scope="package")
def world():
    """Start everything once, publish three versions of digits, roll 1.0.0 out; end it all after."""
    folder = Path(tempfile.mkdtemp(prefix="ef-e2e-", dir="/tmp"))
    before = dict(os.environ)
    fleet = Fleet(folder, 2, Narrator(to_stderr=True))
    try:
        digits = build(folder)
        fleet.init()
        fleet.start_cloud()
        fleet.start_agents()
        whole = World(fleet, digits)
        for version in digits.models:
            whole.publish(version)
        assert whole.roll_out("1.0.0")["state"] == "completed"
        yield whole
    finally:
        fleet.close()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
