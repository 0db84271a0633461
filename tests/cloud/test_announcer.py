"""Announce: counters, retained documents, and when something is signed anew."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from edgefleet_cloud.database import Database
from edgefleet_cloud.reports.opening import MAX_COUNTER
from edgefleet_shared import bundle, topics
from tests.cloud.rollout_world import RolloutWorld


@pytest.fixture
def world(database: Database) -> Iterator[RolloutWorld]:
    """One device that should run 1.0.0."""
    made = RolloutWorld(database)
    made.shelf.publish("1.0.0")
    made.shelf.publish("2.0.0")
    made.enroll("cam-1")
    made.serve("cam-1", version="1.0.0")
    yield made
    made.transport.stop()


def ask(world: RolloutWorld) -> None:
    """Have the device ask for its document."""
    with world.database.write() as session:
        world.announcer.answer(session, "cam-1")


def test_the_document_names_device_key_and_expiry(world: RolloutWorld):
    """Everything by which the device knows that it is meant."""
    desired, assignment = world.document("cam-1")
    with world.database.read() as session:
        device = world.devices.get(session, "cam-1")
    assert (assignment.fleet, assignment.device, assignment.key) == ("demo", "cam-1", device.key)
    assert assignment.issued == "2026-01-31T12:00:00.000Z"
    assert assignment.expires == "2026-02-07T12:00:00.000Z"
    assert (desired.counter, assignment.counter) == (device.counter, device.counter)
    assert desired.blobs == "http://cloud/v1/blobs"
    assert set(bundle.decode(base64.b64decode(desired.bundle))) == set(world.trust.files)


def test_asking_again_gives_the_same_envelope(world: RolloutWorld):
    """Same content, same bytes, no new counter."""
    before = world.document("cam-1")
    ask(world)
    assert world.document("cam-1")[0].assignment == before[0].assignment


def test_new_snapshots_travel_without_a_new_signature(world: RolloutWorld):
    """The bundle is today's, the envelope is the one that stands."""
    before = world.document("cam-1")[0]
    world.trust.files["2.snapshot.json"] = b"{}"
    ask(world)
    after = world.document("cam-1")[0]
    assert after.assignment == before.assignment
    assert "2.snapshot.json" in bundle.decode(base64.b64decode(after.bundle))


@pytest.mark.parametrize("why", ["half of life", "new root", "new key"])
def test_it_is_signed_anew_when_it_must_be(world: RolloutWorld, why: str):
    """Half of its life is over, root or targets changed, or the device has a new key."""
    before = world.document("cam-1")[1]
    if why == "half of life":
        world.clock.turn(hours=84, seconds=1)
        world.announcer.refresh()
    elif why == "new root":
        world.trust.files["2.root.json"] = b"{}"
        world.announcer.refresh()
    else:
        with world.database.write() as session:
            row = world.devices.get(session, "cam-1")
            row.key = "sha256:" + "0" * 64
            session.add(row)
        ask(world)
    after = world.document("cam-1")[1]
    assert after.counter == before.counter + 1
    assert after.slots == before.slots


def test_before_half_of_life_nothing_is_signed(world: RolloutWorld):
    """Refreshing early changes nothing."""
    before = world.document("cam-1")[0]
    world.clock.turn(hours=83)
    world.announcer.refresh()
    assert world.document("cam-1")[0] == before


def test_nothing_leaves_before_the_commit(world: RolloutWorld):
    """A transaction that fails has neither spent a counter nor published."""
    before = world.document("cam-1")[1].counter
    with pytest.raises(RuntimeError), world.database.write() as session:
        world.announcer.announce(session, ["cam-1"])
        device = world.devices.get(session, "cam-1")
        world.announcer.renew(session, device, force=True)
        assert device.counter == before + 1
        raise RuntimeError
    assert world.document("cam-1")[1].counter == before
    with world.database.read() as session:
        assert world.devices.get(session, "cam-1").counter == before


def test_what_was_signed_and_not_sent_goes_out_at_the_next_start(world: RolloutWorld):
    """The broker was away when the process died."""
    world.broker.set_up(False)
    world.roll_out("2.0.0")
    world.transport.stop()
    world.broker.set_up(True)
    reborn = RolloutWorld(world.database)
    reborn.broker.retained.clear()
    reborn.trust.signer = world.trust.signer
    reborn.announcer.recover()
    assert reborn.document("cam-1")[1].slots["digits"].version == "2.0.0"
    reborn.transport.stop()


def test_what_the_broker_has_is_not_sent_again_at_the_next_start(world: RolloutWorld):
    """A restart of a large fleet's manager is no storm."""
    world.document("cam-1")
    world.announcer.refresh()
    reborn = RolloutWorld(world.database)
    reborn.announcer.recover()
    reborn.transport.publish("f1/nobody/dn/desired", b"").result(10)
    assert topics.desired("cam-1") not in reborn.broker.retained
    reborn.transport.stop()


def test_a_restored_database_goes_beyond_what_devices_have_accepted(world: RolloutWorld):
    """A counter that a device has seen is never used again, or all would look like a replay."""
    with world.database.write() as session:
        world.announcer.catch_up(session, "cam-1", 500)
    assert world.document("cam-1")[1].counter == 501


def test_after_the_highest_counter_that_a_device_may_say_documents_can_be_read(world: RolloutWorld):
    """It leaves room to sign above it, for this device and the others."""
    world.enroll("cam-2")
    world.serve("cam-2", version="1.0.0")
    with world.database.write() as session:
        world.announcer.catch_up(session, "cam-1", MAX_COUNTER)
    before = {name: world.document(name)[1].counter for name in ("cam-1", "cam-2")}
    for _ in range(3):
        world.clock.turn(hours=100)
        world.announcer.refresh()
    after = {name: world.document(name)[1].counter for name in ("cam-1", "cam-2")}
    assert after == {name: counter + 3 for name, counter in before.items()}
    assert after["cam-1"] == MAX_COUNTER + 4


def test_a_decommissioned_device_is_told_nothing(world: RolloutWorld):
    """Its key counts no more, so nothing is signed for it."""
    with world.database.write() as session:
        world.devices.decommission(session, world.devices.get(session, "cam-1"), "token/admin")
    before = world.document("cam-1")[1].counter
    world.clock.turn(hours=100)
    world.announcer.refresh()
    ask(world)
    assert world.document("cam-1")[1].counter == before
