"""kill -9 and power cuts while a stand-in answers, and in the shadow or canary window."""

from __future__ import annotations

import msgspec
import pytest

from edgefleet_shared.messages import Policy
from tests.agent.test_stand_in import publish, stand_in_of
from tests.agent.world import World, until
from tests.faults.device import Device, Witness
from tests.faults.test_kill_agentd import let, lose

STEPS = ("Flip", "Load", "Flip", "Release", "Load", "Flip")
"""What a swap with a stand-in asks of the gateway: whether the new version is there, the stand-in's
load and flip, the old one's end, the new one's load and flip. No two in a row have the same name.
"""


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device that serves 1.0.0, whose package has a fallback."""
    device = Device(world)
    device.start()
    device.one = publish(world, "1.0.0")
    device.assign(device.one)
    device.reaches(device.one.deployment, "succeeded")
    yield device
    device.close()


def come_to(device, step: int) -> str:
    """Let the swap come to its request of that number, which waits; return the request's name."""
    gateway, before = device.gateway, device.asked
    for number, name in enumerate(STEPS):
        due = STEPS[: number + 1].count(name)
        until(lambda n=name, d=due: gateway.seen[before:].count(n) == d, f"{number}: {name}")
        if number == step:
            return name
        gateway.hold.add(STEPS[number + 1])
        gateway.let_go(name)
    raise AssertionError(step)


@pytest.mark.parametrize(
    ("step", "end", "power"),
    [
        (1, "done", "agentd"), (2, "lost", "everything"), (2, "done", "agentd"),
        (3, "done", "agentd"), (3, "lost", "everything"), (4, "done", "agentd"),
        (5, "lost", "agentd"),
    ],
)  # fmt: skip
def test_a_stand_in_cut_short_ends_in_the_new_version(world, device, step, end, power):
    """At each request, done or not: something answers meanwhile, then the new version does."""
    two = publish(world, "2.0.0", swap="stand_in", drain_s=0)
    device.asked = len(device.gateway.seen)
    device.gateway.hold.add(STEPS[0])
    device.assign(two)
    name = come_to(device, step)
    device.kill() if power == "agentd" else device.cut_power()
    device.gateway.hold.clear()
    (let if end == "done" else lose)(name)(device)
    with Witness(device) as witness:
        device.start()
        device.reaches(two.deployment, "succeeded")
        until(lambda: device.gateway.loaded() == {two.manifest: "active"}, "the rest released")
    known = {device.one.manifest, two.manifest, stand_in_of(device.one)}
    assert witness.seen <= known | ({""} if power == "everything" else set())
    assert device.record().previous.digest == device.one.manifest


@pytest.mark.parametrize("power", ["agentd", "everything"])
@pytest.mark.parametrize(("window", "given"), [("shadow", "shadows"), ("canary", "shares")])
def test_a_window_cut_short_begins_anew_and_the_old_version_serves(
    world, device, window, given, power
):
    """SIGKILL in the midst of shadow or canary: the old version is routed until it is over."""
    asked = {f"{window}_s": 1, f"{window}_pct": 50}
    policy = Policy(min_requests=0, probation_s=0, drain_s=0, **asked)
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=policy)
    request = window.capitalize()
    device.gateway.hold.add(request)
    device.assign(two)
    until(lambda: device.record().deployment.reason == window, "the window")
    until(lambda: request in device.gateway.seen, "its request")
    assert device.record().deployment.state == "staged"
    device.kill() if power == "agentd" else device.cut_power()
    device.gateway.let_go(request)
    device.start()
    with Witness(device) as witness:
        until(lambda: (two.manifest, 50) in getattr(device.gateway, given), "it, anew")
    assert witness.seen <= {device.one.manifest} | ({""} if power == "everything" else set())
    device.reaches(two.deployment, "succeeded")
    assert device.gateway.routed("digits") == two.manifest
