"""A whole real fleet for the end-to-end tests: fleet manager, broker, two agents, 3 versions."""

from __future__ import annotations

import pytest

from tests.e2e.world import whole_fleet


@pytest.fixture(scope="package")
def world():
    """Start everything once, publish three versions of digits, roll 1.0.0 out; end it all after."""
    with whole_fleet("ef-e2e-", ("1.0.0", "2.0.0", "3.0.0")) as whole:
        yield whole
