"""What stolen or foreign keys may try with the catalog; the device refuses and keeps its floors."""

from __future__ import annotations

import shutil

import pytest
from tuf.api.metadata import DelegatedRole, Delegations

from tests.agent.test_acceptance import Device
from tests.agent.world import World
from tests.faults.power_cut import not_below


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world, tmp_path):
    """A device that has accepted 1.0.0."""
    device = Device(world, tmp_path)
    device.accept(world.assign(device.identity, world.publish("1.0.0")))
    return device


def floors_stand(device, attack, code):
    """Check that an attack is refused by that code and lowers no floor, now or after a restart."""
    before = device.floors()
    assert device.refuses(attack) == code
    device.wake()
    assert not_below(device.floors(), before)
    assert device.acceptance.counter == before.counter


def test_a_root_of_ones_own_is_no_root(world, device):
    """A root that only a stranger signed brings no targets and no delegations of a stranger's."""
    evil = world.publish("6.6.6")
    stranger = world.key("stranger")
    world.root.version = 2
    for role in ("root", "targets", "snapshot", "timestamp"):
        world.root.roles[role].keyids = [stranger.keyid]
    world.root.keys[stranger.keyid] = stranger
    world.files["2.root.json"] = world.sign(world.root, "stranger")
    role = DelegatedRole("publisher/digits", [stranger.keyid], 1, True, ["models/digits/*/*"])
    director = DelegatedRole("director", [stranger.keyid], 1, True, ["assignments/*"])
    world.targets.delegations = Delegations(
        {stranger.keyid: stranger}, {role.name: role, director.name: director}
    )
    world.targets.version += 1
    everyone = dict.fromkeys(("targets", "snapshot", "timestamp"), "stranger")
    world.release(**everyone, **{"publisher/digits": "stranger"})
    attack = world.assign(device.identity, evil, signer="stranger")
    floors_stand(device, attack, "metadata_signature")


@pytest.mark.parametrize("thief", ["director", "snapshot", "timestamp", "publisher"])
def test_no_online_or_publisher_key_delegates(world, device, thief):
    """Targets that a key below them signed are no targets."""
    stranger = world.key("stranger")
    delegations = world.targets.delegations
    assert delegations is not None
    assert delegations.roles is not None
    delegations.keys[stranger.keyid] = stranger
    delegations.roles["director"].keyids = [stranger.keyid]
    world.targets.version += 1
    slot = world.publish("2.0.0")
    world.release(targets=thief)
    attack = world.assign(device.identity, slot, signer="stranger")
    floors_stand(device, attack, "metadata_signature")


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_an_old_timestamp_beside_a_new_snapshot(world, device, cache):
    """The timestamp decides: an older one is a rollback, whatever lies beside it."""
    old = world.files["timestamp.json"]
    slot = world.publish("2.0.0")
    device.accept(world.assign(device.identity, slot))
    if cache == "lost":
        shutil.rmtree(device.state / "trust" / "metadata")
    envelope = world.assignment(device.identity, slot)
    mixed = world.desired(envelope, files={**world.files, "timestamp.json": old})
    floors_stand(device, mixed, "metadata_rollback")


def test_a_slot_that_names_another_family(world, device):
    """The director cannot bring one family's version into another's slot."""
    slot = world.publish("2.0.0")
    attack = world.desired(world.assignment(device.identity, slots={"audio": slot}))
    floors_stand(device, attack, "malformed")
