"""Rows 10 to 18: both trust roots must agree, about this device and this hardware."""

from __future__ import annotations

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, Targets

from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.package import target_path
from tests.adversarial.attacked import Attacked
from tests.agent.world import QUICK, World, until

REPLACE = msgspec.structs.replace


def test_10_the_director_alone_brings_nothing(world, victim):
    """A version that no publisher signed is refused, its bytes are never even fetched."""
    evil = b"weights of nobody"
    world.blobs[sha256_digest(evil)] = evil
    unsigned = REPLACE(
        victim.one, version="6.6.6", deployment=new_id(), manifest=sha256_digest(evil)
    )
    asked = len(world.server.ranges)
    victim.refuses(world.assign(victim.identity, unsigned), "not_in_catalog")
    assert len(world.server.ranges) == asked


def test_11_the_publisher_alone_brings_nothing(world, victim):
    """A newly published version moves no device: it has to be assigned."""
    two = world.publish("1.1.0")
    asked, routed = len(world.server.ranges), victim.agent.gateway.routed("digits")
    # The same order as before travels with the newest catalog.
    victim.takes(world.assign(victim.identity, victim.one))
    assert victim.agent.gateway.routed("digits") == routed == victim.one.manifest
    assert two.manifest not in victim.agent.gateway.loaded()
    assert len(world.server.ranges) == asked


FIELDS = {
    "other bytes": {"manifest": sha256_digest(b"other")},
    "another length": {"size": 1},
    "another counter": {"release_counter": 9},
}


@pytest.mark.parametrize("what", FIELDS)
def test_12_one_path_two_contents(world, victim, what):
    """What the director says of a version must be what its publisher says."""
    slot = REPLACE(world.publish(f"1.2.{len(what)}"), **FIELDS[what])
    victim.refuses(world.assign(victim.identity, slot), "disagree")


def test_13_somebody_elses_assignment(world, victim):
    """A genuine assignment for another device, or another fleet, means nothing here."""
    for field, value in (("device", "cam-2"), ("fleet", "other")):
        payload = world.assign(victim.identity, victim.one, **{field: value})
        victim.refuses(payload, f"wrong_{field}")


def test_14_the_same_name_with_another_key(world, victim):
    """What was signed for the key that this device had before is not for this one."""
    old = sha256_digest(b"the key of its last life")
    victim.refuses(world.assign(victim.identity, victim.one, key=old), "wrong_key")


def listed(world: World, version: str, hardware: list[str]) -> None:
    """Let the publisher name hardware in the catalog."""
    target = world.publishers["digits"].targets[target_path("digits", version)]
    target.custom["hardware"] = hardware
    world.publishers["digits"].version += 1
    world.release()


def test_15_a_package_for_other_hardware(world, victim):
    """By the catalog it is refused at once; by the manifest before anything is loaded."""
    for_pi = world.publish("1.3.0", change=lambda m: fitted(m, ["rpi5"]))
    listed(world, "1.3.0", ["rpi5"])
    victim.refuses(world.assign(victim.identity, for_pi), "wrong_hardware")
    careless = world.publish("1.3.1", change=lambda m: fitted(m, ["rpi5"]))
    unfit(victim, careless, "no_compatible_variant", "no_compatible_variant")


def test_15_two_variants_that_both_fit(world, victim):
    """A package that leaves the choice to the device is not chosen from."""

    def doubled(manifest):
        one = manifest.variants[0]
        return REPLACE(manifest, variants=[one, REPLACE(one, id="cpu-2")])

    unfit(victim, world.publish("1.4.0", change=doubled), "rejected", "ambiguous_variant")


def fitted(manifest, hardware):
    """Return a manifest whose only variant is for that hardware."""
    return REPLACE(manifest, variants=[REPLACE(manifest.variants[0], hardware=hardware)])


def unfit(victim: Attacked, slot, state: str, code: str) -> None:
    """Assign what both roots sign and this hardware cannot run; what serves goes on serving."""
    serving, loaded = victim.agent.gateway.routed("digits"), victim.agent.gateway.loaded()
    victim.agent.assign(slot)
    until(
        lambda: (r := victim.agent.transport.slot("digits")).get("deployment") == slot.deployment
        and r["state"] == state and r["reason"] == code,
        f"{code}; {victim.agent.transport.slot('digits')}",
    )  # fmt: skip
    assert victim.agent.gateway.routed("digits") == serving
    assert victim.agent.gateway.loaded() == loaded


def test_16_a_publisher_of_one_family_signs_another(world, victim):
    """`publisher/digits` says what `models/audio/...` is: nobody hears it."""
    foreign = world.publish("1.0.0", model="audio")
    path = target_path("audio", "1.0.0")
    audio, digits = world.publishers["audio"], world.publishers["digits"]
    digits.targets[path] = audio.targets.pop(path)
    audio.version += 1
    digits.version += 1
    world.release()
    slot = REPLACE(foreign, deployment=new_id(), policy=QUICK)
    victim.refuses(world.assign(victim.identity, slot), "not_in_catalog")
    del digits.targets[path]
    digits.version += 1
    world.release()


@pytest.fixture
def diamond():
    """Targets delegate digits to its publisher and audio to audio's; both name one role `shared`.

    Only the key that `publisher/digits` names for it signs the role.
    """
    world = World(models=("digits", "audio"))
    victim = Attacked(world)
    yield world, victim
    victim.close()
    world.close()


def test_17_a_role_that_is_valid_by_one_way_only(diamond):
    """A role reached through digits is not believed when it is reached through audio."""
    world, victim = diamond
    thief, other = CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ecdsa()
    for name, key in (("digits", thief), ("audio", other)):
        role = DelegatedRole("shared", [key.public_key.keyid], 1, True, [f"models/{name}/*/*"])
        world.publishers[name].delegations = Delegations(
            {key.public_key.keyid: key.public_key}, {"shared": role}
        )
    evil = world.publish("6.6.6", model="audio")
    own = world.publish("6.6.5")
    shared = Targets(expires=world.targets.expires)
    for name, version in (("audio", "6.6.6"), ("digits", "6.6.5")):
        path = target_path(name, version)
        shared.targets[path] = world.publishers[name].targets.pop(path)
        world.publishers[name].version += 1
    world.keys["shared"] = thief
    world.files["1.shared.json"] = world.sign(shared, "shared")
    world.snapshot.meta["shared.json"] = MetaFile(1)
    world.release()
    # Through digits the role verifies, and lies in the device's cache when audio is looked up; a
    # publisher's own role alone is heard there.
    victim.refuses(world.assign(victim.identity, own), "not_in_catalog")
    victim.refuses(world.assign(victim.identity, own, evil), "metadata_signature")
    victim.refuses(world.assign(victim.identity, evil), "metadata_signature")
    assert evil.manifest not in victim.agent.gateway.loaded()


def test_18_an_empty_assignment_of_somebody_else(world, victim):
    """`Run nothing` is for the device that it names, and for no other."""
    for field, value in (("device", "cam-2"), ("device", ""), ("key", sha256_digest(b"other"))):
        payload = world.assign(victim.identity, **{field: value})
        victim.refuses(payload, f"wrong_{field}")


def test_18_an_empty_assignment_of_its_own_stops_every_slot(world):
    """`Run nothing`, to this device: all slots end, once, and replayed it is refused."""
    victim = Attacked(world)
    try:
        hear = world.publish("2.0.0", model="audio")
        victim.serves_on(hear)
        empty, counter = world.assignment(victim.identity), world.counter
        victim.agent.transport.send(world.desired(empty))
        until(lambda: not victim.agent.gateway.routed("digits"), "digits ends")
        until(lambda: not victim.agent.gateway.routed("audio"), "audio ends")
        for name in ("digits", "audio"):
            until(lambda name=name: victim.agent.record(name).active is None, name)
        until(lambda: victim.agent.record().deployment.state.value == "succeeded", "it is done")
        done = victim.agent.record().deployment
        victim.agent.stop()
        victim.agent.new_gateway()
        victim.agent.start()
        until(lambda: victim.agent.transport.reported, "it is back")
        assert victim.agent.record().deployment == done
        victim.serves_on(world.publish("2.0.1"))
        victim.refuses(world.desired(empty, counter=counter), "replayed")
    finally:
        victim.close()


def test_18_a_device_may_be_told_to_keep_its_slots(world):
    """Configured to keep them, a device goes on with all of them; only named slots change."""
    victim = Attacked(world, empty_assignment="keep")
    try:
        victim.takes(world.assign(victim.identity))
        assert victim.agent.gateway.routed("digits") == victim.one.manifest
        stop = REPLACE(victim.one, mode="stop", deployment=new_id())
        victim.agent.assign(stop)
        until(lambda: not victim.agent.gateway.routed("digits"), "named, it ends")
    finally:
        victim.close()


def test_a_slot_that_is_not_named_is_left_as_it_is(world):
    """An assignment that names another slot ends nothing."""
    victim = Attacked(world)
    try:
        victim.serves_on(world.publish("3.0.0", model="audio"))
        assert victim.agent.gateway.routed("digits") == victim.one.manifest
    finally:
        victim.close()
