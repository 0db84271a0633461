"""Gateways for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.gateways import Gateway
from tests.models import linear, package


@pytest.fixture
def gateway():
    """A gateway that nobody else uses."""
    one = Gateway()
    yield one
    one.close()


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory):
    """A gateway that serves model `m` (linear, times 2) to the tests of one module."""
    one = Gateway("--max-body-bytes", "1000000")
    folder: Path = tmp_path_factory.mktemp("packages")
    one.control.serve(package(folder, linear(2.0)))
    yield one
    one.close()
