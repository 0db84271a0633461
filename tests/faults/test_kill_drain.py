"""kill -9 and power cuts between the end of the old version and the first answer of the new one."""

from __future__ import annotations

import msgspec
import pytest

from edgefleet_shared.messages import Policy
from tests.agent.world import World, until
from tests.faults.device import Device
from tests.faults.test_kill_agentd import let, lose

DRAINS = Policy(probation_s=0, min_requests=0, standby_s=0, drain_s=0, swap="drain")


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device that serves 1.0.0."""
    device = Device(world)
    device.start()
    one = world.publish("1.0.0")
    device.assign(one)
    device.reaches(one.deployment, "succeeded")
    device.one = one
    yield device
    device.close()


@pytest.mark.parametrize(
    ("request_name", "end", "power"),
    [
        ("Hold", "done", "agentd"), ("Hold", "lost", "everything"), ("Load", "done", "agentd"),
        ("Load", "lost", "everything"), ("Flip", "lost", "agentd"), ("Flip", "done", "agentd"),
    ],
)  # fmt: skip
def test_a_drain_cut_short_ends_in_one_version_that_serves(world, device, request_name, end, power):
    """At each request of a drain, done or not: the old version is brought back, then the new."""
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=DRAINS)
    device.gateway.hold.add(request_name)
    device.assign(two)
    device.reaches(two.deployment, "swapping")
    until(lambda: device.gateway.seen[-1] == request_name)
    device.kill() if power == "agentd" else device.cut_power()
    (let if end == "done" else lose)(request_name)(device)
    device.start()
    device.reaches(two.deployment, "succeeded")
    until(lambda: device.gateway.loaded() == {two.manifest: "active"}, str(device.gateway.loaded()))
    assert device.record().active.digest == two.manifest
    assert device.record().previous.digest == device.one.manifest
