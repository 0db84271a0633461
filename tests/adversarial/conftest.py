"""What the rows stand on."""

from __future__ import annotations

import pytest

from tests.adversarial.attacked import Attacked
from tests.agent.world import World


@pytest.fixture(scope="module")
def world():
    """A fleet with keys of its own, for all the attacks of one file."""
    world = World(models=("digits", "audio"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def victim(world):
    """A device that serves 1.0.0 while one attack follows the other."""
    victim = Attacked(world)
    yield victim
    victim.close()
