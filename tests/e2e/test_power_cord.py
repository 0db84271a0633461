"""`kill -9` at any moment: the device ends in the old or the new version, and serves all along."""

from __future__ import annotations

import os
import random
import signal
import time

from edgefleet_provisioning.demo.load import LOST
from tests.e2e.world import World, until


def other(world: World, name: str) -> str:
    """Return the version that the device does not run, of 1.0.0 and 2.0.0."""
    return "2.0.0" if world.version(name) == "1.0.0" else "1.0.0"


def test_agentd_killed_at_random_moments_of_rollouts(world: World):
    """Eight kills of agentd in four rollouts: no request fails, and each rollout still ends."""
    dice = random.Random(2)
    with world.load("cam-1") as client:
        for _ in range(4):
            target = other(world, "cam-1")
            created = world.start_rollout(target, "--device", "cam-1")
            for _ in range(2):
                time.sleep(dice.uniform(0.0, 1.2))
                os.kill(world.agent_pid("cam-1"), signal.SIGKILL)
                time.sleep(dice.uniform(0.0, 0.3))
                world.restart_agent("cam-1")
            ended = until(
                "the rollout's end",
                lambda path=f"/v1/rollouts/{created['id']}": (
                    (r := world.fleet.get(path))["state"] not in {"running", "draft"} and r
                ),
                60.0,
            )
            assert ended["state"] == "completed", ended
            assert world.version("cam-1") == target
    assert client.errors == []
    assert len(client.rows) > 100


def test_a_worker_killed_in_the_middle_of_requests(world: World):
    """Two kills of the serving worker under load: every request is answered all the same."""
    with world.load("cam-2") as client:
        for _ in range(2):
            time.sleep(0.3)
            before = world.worker("cam-2")
            os.kill(before, signal.SIGKILL)
            until("a new worker", lambda old=before: world.worker("cam-2") not in {0, old})
        time.sleep(0.3)
    lost = [row for row in client.rows if row[3] == LOST]
    assert lost == [], client.errors


def test_the_fleet_manager_killed_and_started_again(world: World):
    """It comes back with all it knew, the devices find it, and a rollout goes through."""
    os.kill(world.pid("cloud"), signal.SIGKILL)
    before = {name: world.version(name) for name in world.names}
    assert all(before.values())
    world.fleet.start_cloud()
    target = other(world, "cam-1")
    ended = world.roll_out(target, "--device", "cam-1")
    assert (ended["state"], world.version("cam-1")) == ("completed", target)
    assert world.version("cam-2") == before["cam-2"]


def test_losing_the_cloud_does_not_stop_inference(world: World):
    """With the fleet manager and its broker gone, the devices answer as before."""
    before = {name: world.version(name) for name in world.names}
    pid = world.pid("cloud")
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.0)
        assert {name: world.version(name) for name in world.names} == before
    finally:
        os.kill(pid, signal.SIGCONT)
