"""Receive: what the device believes, and the code by which it refuses the rest."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import pytest

from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared import strict_json
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import DESIRED_MAX_BYTES, Desired
from edgefleet_shared.package import publisher_role
from tests.agent.world import World


class Device:
    """An acceptance on a disk of its own, with a clock that a test may turn."""

    def __init__(self, world, folder):
        self.world, self.state = world, folder / "state"
        self.identity = world.enrolled(self.state)
        self.shift = 0.0
        self.wake()

    def wake(self):
        """Start again from what is on disk."""
        self.acceptance = Acceptance(
            self.state,
            self.identity.who,
            "rpi5",
            self.identity.root,
            lambda: time.time() + self.shift,
        )

    def floors(self):
        return FloorStore(self.state / "trust").current

    def accept(self, payload):
        return self.acceptance.accept(payload)

    def refuses(self, payload):
        """Return the code of the refusal, having checked that nothing was accepted."""
        counter = self.acceptance.counter
        kept = (self.state / "desired" / "accepted.json").exists() and (
            self.state / "desired" / "accepted.json"
        ).read_bytes()
        with pytest.raises(EdgeFleetError) as caught:
            self.accept(payload)
        after = (self.state / "desired" / "accepted.json").exists() and (
            self.state / "desired" / "accepted.json"
        ).read_bytes()
        assert (self.acceptance.counter, after) == (counter, kept)
        return caught.value.code


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world, tmp_path):
    """An enrolled device that has accepted nothing yet."""
    return Device(world, tmp_path)


def flipped(payload: bytes, field: str, at: int = 40) -> bytes:
    """Flip one bit of what a field of the desired document carries in base64."""
    document = json.loads(payload)
    data = bytearray(b64decode(document[field]))
    data[at] ^= 1
    document[field] = b64encode(bytes(data)).decode()
    return json.dumps(document).encode()


def test_an_assignment_that_both_roots_agree_on_is_accepted(world, device):
    """Slots, counter and blob address come out; the floors rise."""
    slot = world.publish("1.0.0")
    accepted = device.accept(world.assign(device.identity, slot))
    assert accepted.assignment.slots == {"digits": slot}
    assert accepted.blobs == world.server.url
    floors = device.floors()
    assert (floors.counter, floors.root, floors.timestamp) == (1, 1, world.timestamp.version)
    assert floors.targets[publisher_role("digits")] == world.publishers["digits"].version
    assert floors.models["digits"].release_counter == 1


def test_the_same_envelope_again_is_no_refusal_and_no_write(world, device):
    """A retained message comes on every connect; it means what it meant."""
    payload = world.assign(device.identity, world.publish("1.0.0"))
    first = device.accept(payload)
    files = {p: p.stat().st_mtime_ns for p in device.state.rglob("*") if p.is_file()}
    assert device.accept(payload) == first
    device.wake()
    assert device.accept(payload) == first
    assert {p: p.stat().st_mtime_ns for p in device.state.rglob("*") if p.is_file()} == files


def stranger_publishes(world, device, slot):
    """A key that is no publisher's signs the publisher's role."""
    world.publishers["digits"].version += 1
    world.release(publisher="stranger")
    return world.assign(device.identity, slot)


def stranger_releases(world, device, slot):
    """A stranger's key signs timestamp and snapshot."""
    world.release(timestamp="stranger", snapshot="stranger")
    return world.assign(device.identity, slot)


def snapshot_left_out(world, device, slot):
    """The bundle lacks a file that the timestamp names."""
    files = {n: d for n, d in world.files.items() if "snapshot" not in n}
    return world.desired(world.assignment(device.identity, slot), files=files)


def expired_catalog(world, device, slot):
    """The timestamp is past its day."""
    world.timestamp.expires = datetime.now(UTC) - timedelta(hours=1)
    world.release()
    return world.assign(device.identity, slot)


CASES = [
    (stranger_publishes, "metadata_signature"),
    (stranger_releases, "metadata_signature"),
    (snapshot_left_out, "metadata_missing"),
    (expired_catalog, "metadata_expired"),
    (lambda w, d, s: w.assign(d.identity, s, expires="2020-01-01T00:00:00Z"), "expired"),
    (lambda w, d, s: w.assign(d.identity, s, counter=2**21), "fast_forward"),
    (lambda w, d, s: w.desired(w.assignment(d.identity, s), counter=77), "disagree"),
    (lambda w, d, s: flipped(w.assign(d.identity, s), "bundle"), "malformed"),
    (lambda w, d, s: w.desired(b"{}"), "malformed"),
    (lambda _w, _d, _s: b'{"v":1}', "malformed"),
    (lambda _w, _d, _s: b"[" * 100_000, "malformed"),
]


@pytest.mark.parametrize(
    ("attack", "code"), CASES, ids=[f"{i}-{code}" for i, (_, code) in enumerate(CASES)]
)
def test_a_document_that_does_not_hold_is_refused_by_code(world, device, attack, code):
    """Whatever is wrong, the answer is a code, and what was accepted before stands."""
    old = world.publish("1.0.0")
    before = device.accept(world.assign(device.identity, old))
    assert device.refuses(attack(world, device, world.publish("2.0.0"))) == code
    assert device.acceptance.last() == before


def test_an_older_assignment_is_refused_whatever_was_lost(world, device):
    """Replays stay refused after the caches and the accepted document are gone."""
    slot = world.publish("1.0.0")
    older = world.assign(device.identity, slot)
    device.accept(world.assign(device.identity, slot))
    assert device.refuses(older) == "replayed"
    for path in (*device.state.glob("trust/metadata/*.json"), *device.state.glob("desired/*")):
        path.unlink()
    device.wake()
    assert device.refuses(older) == "replayed"


def test_power_lost_between_document_and_floors_is_made_good(world, device):
    """The document on disk is judged again and its counter becomes the floor."""
    slot = world.publish("1.0.0")
    device.accept(world.assign(device.identity, slot))
    payload = world.assign(device.identity, slot)
    (device.state / "desired" / "accepted.json").write_bytes(payload)
    device.wake()
    last = device.acceptance.last()
    assert last is not None
    assert last.assignment.counter == device.acceptance.counter == 2


def test_a_publisher_may_forbid_what_is_older(world, device):
    """A downgrade is accepted down to the security floor, and not below."""
    one, two = world.publish("1.0.0"), world.publish("2.0.0")
    device.accept(world.assign(device.identity, two))
    device.accept(world.assign(device.identity, one))
    three = world.publish("3.0.0", floor=2)
    assert device.refuses(world.assign(device.identity, one)) == "below_security_floor"
    assert device.acceptance.security_floor("digits") == 2
    device.accept(world.assign(device.identity, three))
    device.accept(world.assign(device.identity, two))


def test_desired_documents_of_the_largest_size_are_read(world, device):
    """A real document is far below the cap."""
    payload = world.assign(device.identity, world.publish("1.0.0"))
    assert len(payload) < 32 * 1024
    assert strict_json.decode(payload, Desired, max_bytes=DESIRED_MAX_BYTES, what="x").counter == 1
    assert Floors().counter == 0
