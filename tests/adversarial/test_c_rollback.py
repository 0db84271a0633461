"""C: rollback, freeze and mix; security.md section 8 (3), 19 to 31."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import MetaFile

from edgefleet_agent.enrollment import enroll
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_agent.trust.floors import SLOTS, Floors, FloorStore
from edgefleet_shared.errors import TrustError
from edgefleet_shared.messages import Policy
from edgefleet_shared.times import parse_time
from tests.adversarial.agent_process import serving
from tests.agent.test_enrollment import Registrar
from tests.agent.world import World, until

LONG = Policy(probation_s=600, min_requests=10, standby_s=600, drain_s=0)


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


def test_19_an_older_signed_bundle_is_refused(world, victim):
    """Neither the old document as it was, nor its catalog under a new assignment, is taken."""
    old_files, old = dict(world.files), world.assign(victim.identity, victim.slot)
    two = world.publish("2.0.0")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    victim.refuses(old, "metadata_rollback")
    mixed = world.desired(world.assignment(victim.identity, victim.slot), files=old_files)
    victim.refuses(mixed, "metadata_rollback")
    replay = json.loads(old) | {"bundle": json.loads(world.desired(b""))["bundle"]}
    victim.refuses(json.dumps(replay).encode(), "replayed")


def test_20_an_older_bundle_after_the_cache_was_lost(world, victim):
    """The metadata cache may be gone, empty or torn: the floors lie elsewhere and hold."""
    old = dict(world.files)
    two = world.publish("2.0.0")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    for left in (0.5, 0, None):
        victim.kill()
        for path in (p for p in (victim.state / "trust" / "metadata").rglob("*") if p.is_file()):
            if left is None:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
        victim.start()
        envelope = world.assignment(victim.identity, two)
        victim.refuses(world.desired(envelope, files=old), "metadata_rollback")
    victim.takes(world.assign(victim.identity, two))


def test_21_with_both_floors_lost_it_serves_on_and_refuses_change(world, victim):
    """What runs goes on, nothing new is believed however genuine, and the loss is reported."""
    two = world.publish("2.0.0")
    for how in ("torn", "deleted"):
        victim.cut_power()
        for name in SLOTS:
            path = victim.state / "trust" / name
            if how == "torn":
                path.write_bytes(path.read_bytes()[:50])
            else:
                path.unlink()
        victim.start()
        until(lambda: victim.gateway.routed("digits") == victim.slot.manifest, "the old version")
        victim.refuses(world.assign(victim.identity, two), "floor_lost")
        until(lambda: victim.report()["agent"]["floor_lost"] is True, "the report")
        assert FloorStore(victim.state / "trust").current is None


def test_22_a_floor_torn_at_any_byte_leaves_the_other(tmp_path):
    """Whichever of the two is cut short or changed at whatever byte, the other one is read."""
    store, path = FloorStore(tmp_path), {name: tmp_path / name for name in SLOTS}
    held = {}
    for counter, name in ((4, SLOTS[1]), (5, SLOTS[0])):
        store.commit(Floors(root=2, counter=counter, targets={"targets": 3}))
        held[name] = store.current
    for torn, whole in (SLOTS, SLOTS[::-1]):
        data = path[torn].read_bytes()
        for at in range(len(data)):
            path[torn].write_bytes(data[:at])
            assert FloorStore(tmp_path).current == held[whole], (torn, at)
            path[torn].write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            # A bit in the name of a field that has its default anyway changes no value.
            assert FloorStore(tmp_path).current in held.values(), (torn, at)
        path[torn].write_bytes(data)


def test_22_the_newest_floor_torn_revives_no_replay(world, victim):
    """A real agentd on the older floor judges what it had accepted again before anything else."""
    old = world.assign(victim.identity, victim.slot)
    two = world.publish("2.0.0")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    victim.kill()
    newest = max(SLOTS, key=lambda name: _generation(victim.state / "trust" / name))
    path = victim.state / "trust" / newest
    path.write_bytes(path.read_bytes()[:-20])
    victim.start()
    until(lambda: victim.floors().counter == world.counter, "the floor again")
    victim.refuses(old, "metadata_rollback")


def _generation(path: Path) -> int:
    return json.loads(path.read_bytes())["generation"]


def test_23_a_downgrade_ends_at_the_security_floor(world, victim):
    """Down to it the director may go, and it is logged; below it nobody may."""
    two = world.publish("2.0.0")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    again = msgspec.structs.replace(victim.slot, deployment="back-to-1")
    victim.takes(world.assign(victim.identity, again))
    victim.serves(again)
    until(lambda: victim.events("downgrade"), "the event")
    world.publish("3.0.0", floor=2)
    forbidden = msgspec.structs.replace(victim.slot, deployment="below")
    victim.refuses(world.assign(victim.identity, forbidden), "below_security_floor")
    victim.takes(world.assign(victim.identity, two))


@pytest.mark.parametrize("when", ["probation", "service"])
def test_24_no_fallback_below_a_floor_that_rose_meanwhile(world, victim, when):
    """The old version leaves the gateway when the floor rises; a crash ends at no model."""
    policy = LONG if when == "probation" else Policy(probation_s=0, min_requests=0, standby_s=600)
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=policy)
    victim.takes(world.assign(victim.identity, two))
    victim.reaches(two.deployment, "probation" if when == "probation" else "succeeded")
    until(lambda: victim.gateway.loaded().get(victim.slot.manifest) == "standby", "the standby")
    world.publish("3.0.0", floor=2)
    victim.takes(world.assign(victim.identity, two))
    until(lambda: victim.slot.manifest not in victim.gateway.loaded(), "1.0.0 is taken away")
    assert victim.gateway.routed("digits") == two.manifest
    victim.gateway.quarantine(two.manifest, fall_back=True)
    code = "below_security_floor"
    until(lambda: victim.report()["slots"]["digits"]["active"] == "", f"{victim.report()}")
    assert victim.gateway.routed("digits") == ""
    if when == "probation":
        victim.reaches(two.deployment, "rollback_failed")
        assert victim.record().deployment.reason == code
    until(lambda: victim.events(code) + victim.events("rollback_failed"), code)
    boot = victim.report()["boot"]
    victim.cut_power()
    victim.start()
    until(lambda: victim.report()["boot"] != boot, "a report of the next start")
    assert victim.gateway.routed("digits") == ""  # given up: no restart tries it again
    assert victim.slot.manifest not in victim.gateway.loaded()
    if when == "service":  # a new assignment does
        victim.takes(world.assign(victim.identity, msgspec.structs.replace(two, deployment="anew")))
        until(lambda: victim.gateway.routed("digits") == two.manifest, "what is assigned anew")


def test_25_an_expired_timestamp_stops_change_not_inference(world, victim):
    """Refused and reported as stale; the version goes on serving, after a power cut too."""
    expire(world)
    victim.refuses(world.assign(victim.identity, world.publish("2.0.0")), "metadata_expired")
    assert victim.report()["agent"]["stale"] is False  # the one it knows holds for a month yet
    victim.power_cut_at_year(2029)
    until(lambda: victim.gateway.routed("digits") == victim.slot.manifest, "1.0.0 after the cut")
    until(lambda: victim.report().get("agent", {}).get("stale") is True, f"{victim.report()}")


def expire(world):
    """Let the online role sign a timestamp that is past its day."""
    world.timestamp.expires = datetime.now(UTC) - timedelta(hours=1)


def test_26_a_clock_of_1970_revives_nothing_that_expired(world, victim):
    """The time floor stands in for the clock: expired stays expired, fresh is taken."""
    lasting = world.timestamp.expires
    expire(world)
    expired = world.assign(victim.identity, world.publish("2.0.0"))
    victim.power_cut_at_year(1970)
    until(lambda: victim.gateway.routed("digits") == victim.slot.manifest, "1.0.0 after the cut")
    before = victim.floors().time
    victim.refuses(expired, "metadata_expired")
    world.timestamp.expires = lasting
    two = world.publish("3.0.0")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    assert victim.floors().time == before
    assert parse_time(victim.events("accepted")[-1]["ts"]).year >= 2026


def test_27_a_clock_of_2100_poisons_nothing(world, victim):
    """Once it is right again the next refresh works: no wrong time was written down."""
    two = world.publish("2.0.0")
    before = victim.floors().time
    victim.power_cut_at_year(2100)
    until(lambda: victim.gateway.routed("digits") == victim.slot.manifest, "1.0.0 after the cut")
    victim.refuses(world.assign(victim.identity, two), "metadata_expired")
    assert victim.floors().time == before
    victim.cut_power()
    victim.start()
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)


def test_28_a_new_root_ends_a_stolen_keys_fast_forward(world, victim):
    """Versions of 2^62 hold against everything but a root that replaces the online keys."""
    before = (world.timestamp.version, world.snapshot.version)
    world.timestamp.version = world.snapshot.version = 2**62
    world.release()
    victim.takes(world.assign(victim.identity, victim.slot))
    world.timestamp.version, world.snapshot.version = before
    two = world.publish("2.0.0")
    victim.refuses(world.assign(victim.identity, two), "metadata_rollback")
    world.root.version = 2  # new, but the thief's keys stay
    world.files["2.root.json"] = world.sign(world.root, "root")
    victim.refuses(world.assign(victim.identity, two), "metadata_rollback")
    replace_online_keys(world)
    world.root.version = 3
    world.files["3.root.json"] = world.sign(world.root, "root")
    world.release()
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    assert victim.floors().root == 3
    assert victim.floors().timestamp < 2**20


def replace_online_keys(world):
    """Let the root, not yet signed, name new keys for timestamp and snapshot."""
    for role in ("timestamp", "snapshot"):
        world.root.revoke_key(world.key(role).keyid, role)
        world.keys[role] = type(world.keys[role]).generate_ecdsa()
        world.root.add_key(world.key(role), role)


def test_29_a_snapshot_that_lists_more_than_is_served(world, victim):
    """Targets 6 are promised and 5 come, under either name: refused."""
    two = world.publish("2.0.0")
    promised = world.targets.version + 1
    world.snapshot.meta["targets.json"] = MetaFile(promised)
    world.snapshot.version += 1
    world.files[f"{world.snapshot.version}.snapshot.json"] = world.sign(world.snapshot, "snapshot")
    world.timestamp.version += 1
    world.timestamp.snapshot_meta = MetaFile(world.snapshot.version)
    world.files["timestamp.json"] = world.sign(world.timestamp, "timestamp")
    victim.refuses(world.assign(victim.identity, two), "metadata_missing")
    world.files[f"{promised}.targets.json"] = world.sign(world.targets, "targets")
    victim.refuses(world.assign(victim.identity, two), "metadata_rollback")


def test_30_two_slots_of_one_assignment_wait_for_each_other(world, victim):
    """While a blob of the second is missing neither switches; once it is there, both do."""
    two, ear = world.publish("2.0.0"), world.publish("1.0.0", model="audio")
    weights = [d for d, data in world.blobs.items() if data.startswith(b"weights of audio")]
    held = {digest: world.blobs.pop(digest) for digest in weights}
    victim.takes(world.assign(victim.identity, two, ear))
    victim.reaches(two.deployment, "staged")
    until(lambda: victim.events("http_404"), f"the blob is asked for in vain; {victim.tail()}")
    lives = len(victim.events("connected"))
    victim.restart()
    until(lambda: len(victim.events("connected")) > lives, "the next agentd")
    time.sleep(0.5)
    assert victim.gateway.routed("digits") == victim.slot.manifest
    assert victim.gateway.routed("audio") == ""
    assert victim.record().deployment.state == "staged"
    world.blobs.update(held)
    victim.serves(two)
    until(lambda: victim.gateway.routed("audio") == ear.manifest, "audio too")


def test_31_a_new_device_believes_nothing_below_its_enrolments_minimum(world, tmp_path):
    """A catalog that is a year old and has not expired, offered to a device of today."""
    old_slot, old_files = world.publish("0.9.0"), dict(world.files)
    new = world.publish("1.0.0")
    registrar = Registrar(world)
    versions = {r: getattr(world, r).version for r in ("root", "timestamp", "snapshot", "targets")}
    registrar.spoil["minimum"] = {
        **versions, "publisher/digits": world.publishers["digits"].version
    }  # fmt: skip
    try:
        identity = enroll(tmp_path, registrar.ticket())
    finally:
        registrar.close()
    device = Acceptance(tmp_path, identity.who, "rpi5", identity.root, time.time)
    document = world.desired(world.assignment(identity, old_slot), files=old_files)
    with pytest.raises(TrustError) as refused:
        device.accept(document)
    assert refused.value.code == "metadata_rollback"
    # The online keys too are a year old and stolen: they sign freshness over the old targets.
    world.publishers["digits"].version -= 1
    world.publishers["digits"].targets.popitem()
    world.release()
    with pytest.raises(TrustError) as refused:
        device.accept(world.assign(identity, old_slot))
    assert refused.value.code == "metadata_rollback"
    world.publishers["digits"].version += 1
    assert device.counter == 7
    world.publish("1.0.1")
    accepted = device.accept(world.assign(identity, old_slot, counter=8))
    assert accepted.assignment.slots["digits"] == old_slot
    assert new.version == "1.0.0"
