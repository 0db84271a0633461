"""E: what a stolen director key cannot do to a device, besides rows 10 to 47."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import MAX_SLOTS, Policy, SlotAssignment
from tests.adversarial.agent_process import serving
from tests.agent.world import World, until


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World(models=("digits", "audio"))
    yield world
    world.close()


@pytest.fixture
def victim(world):
    """A device whose agentd serves digits 1.0.0."""
    victim = serving(world)
    yield victim
    victim.close()


def stop(name: str, deployment: str = "x") -> SlotAssignment:
    """Return an order to end a slot, which needs no publisher."""
    return SlotAssignment("stop", deployment, name, "", "", 0, 0)


def test_a_stolen_director_fills_no_device_with_slots(world, victim):
    """Orders to end slots that never were cost no thread, no journal and no floor without end."""
    for wave in range(3):
        names = [f"m{wave}x{i}" for i in range(MAX_SLOTS)]
        victim.takes(world.assign(victim.identity, *map(stop, names)))
    many = [stop(f"n{i}") for i in range(MAX_SLOTS + 1)]
    victim.refuses(world.assign(victim.identity, *many), "malformed")
    slots = json.loads((victim.state / "journal.json").read_bytes())["slots"]
    assert len(slots) <= MAX_SLOTS
    assert set(victim.floors().models) == {"digits"}
    victim.cut_power()
    victim.start()
    until(lambda: victim.gateway.routed("digits") == victim.slot.manifest, "1.0.0 after the cut")


@pytest.mark.parametrize(
    "change",
    [
        {"deployment": "x" * 60_000},
        {"rollout": "x" * 60_000},
        {"policy": Policy(standby_s=2**53 - 1)},
        {"policy": Policy(drain_s=-1)},
        {"mode": "stop", "version": "x" * 60_000},
        {"mode": "stop", "manifest": "x" * 60_000},
    ],
    ids=["deployment", "rollout", "standby", "drain", "version", "manifest"],
)
def test_a_stolen_director_says_nothing_out_of_range(world, tmp_path, change):
    """Texts that no event can hold, and waits that no clock can, end no slot's thread."""
    slot = msgspec.structs.replace(world.publish("1.0.0"), **change)
    identity = world.enrolled(tmp_path)
    device = Acceptance(tmp_path, identity.who, "rpi5", identity.root, time.time)
    with pytest.raises(InvalidInputError) as refused:
        device.accept(world.assign(identity, slot))
    assert refused.value.code == "malformed"
    assert device.counter == 0


def test_an_address_that_nobody_signed_fills_no_journal(world, tmp_path):
    """The broker alone can change where blobs are said to be, and not to half a megabyte."""
    identity = world.enrolled(tmp_path)
    device = Acceptance(tmp_path, identity.who, "rpi5", identity.root, time.time)
    document = json.loads(world.assign(identity, world.publish("1.0.0")))
    for blobs, taken in (("http://" + "x" * 200_000, False), ("http://" + "x" * 2000, True)):
        try:
            device.accept(json.dumps(document | {"blobs": blobs}).encode())
        except InvalidInputError:
            assert not taken
        else:
            assert taken
