"""Rotation drills on a real fleet, by the commands of docs/trust.md: one device online, one off."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from edgefleet_provisioning.demo.fleet import Fleet
from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.messages import ASSIGNMENT_TYPE
from edgefleet_shared.times import format_time
from tests.e2e.drills import OFF, ON, Drill, start

pytestmark = pytest.mark.timeout(300)  # a whole fleet starts before the first


@pytest.fixture(scope="module")
def drill():
    """A fleet of two devices that run digits 1.0.0, for all drills."""
    folder = Path(tempfile.mkdtemp(prefix="ef-drill-", dir="/tmp"))
    before = dict(os.environ)
    fleet = Fleet(folder, 2, Narrator(to_stderr=True))
    try:
        yield start(folder, fleet)
    finally:
        fleet.close()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def test_root_is_rotated_as_the_page_says(drill: Drill):
    """The next root arrives at once; the device that was off walks three, one with ML-DSA."""
    drill.switch_off()
    shown = drill.follow("Root")
    assert "2 of 3" in shown
    assert "root-2 root-3 root-4" in shown
    drill.reaches(ON, root=2)
    made = drill.type("edgefleet keys add root --algorithm ml-dsa-65")
    assert "root-5" in made
    drill.type("edgefleet trust rotate-root --add root-5 --root-threshold 4")  # it must sign too
    drill.follow("Snapshot and timestamp")
    drill.reaches(ON, root=4)
    assert drill.floors(OFF)["root"] == 1
    drill.switch_on()
    drill.reaches(OFF, root=4)
    drill.runs("2.0.0")


def test_targets_are_rotated_as_the_page_says(drill: Drill):
    """The next root and targets reach the device that is on, and the other once it comes back."""
    drill.switch_off()
    before = drill.floors(ON)
    drill.follow("Targets")
    for name in (ON, OFF):
        wanted = {"root": before["root"] + 1, "targets": before["targets"]["targets"] + 1}
        drill.reaches(name, **wanted)
        if name == ON:
            drill.switch_on()


def test_publisher_is_rotated_as_the_page_says(drill: Drill):
    """The new key's list holds the old releases; what it publishes next reaches both devices."""
    drill.switch_off()
    before = drill.floors(ON)["targets"]
    drill.follow("Publisher")
    drill.reaches(ON, targets=before["targets"] + 1)
    drill.switch_on()
    drill.reaches(OFF, targets=before["targets"] + 1)
    drill.publish("3.0.0")
    drill.runs("3.0.0")
    assert drill.floors(OFF)["targets"]["publisher/digits"] > before["publisher/digits"]


def stolen(drill: Drill, desired: dict, key: CryptoSigner) -> dict:
    """Return a desired document that the old director's thief signs: new counter, years to live."""
    envelope = json.loads(base64.b64decode(desired["assignment"]))
    assignment = json.loads(base64.b64decode(envelope["payload"]))
    assignment["counter"] += 5
    assignment["expires"] = format_time(datetime.now(UTC) + timedelta(days=300))
    sealed = dsse.seal(strict_json.encode(assignment), ASSIGNMENT_TYPE, key)
    return {
        **desired,
        "counter": assignment["counter"],
        "assignment": base64.b64encode(sealed).decode(),
    }


def test_director_is_rotated_as_the_page_says(drill: Drill):
    """Every device gets a new assignment at once; old ones, and what a thief signs, are refused."""
    drill.switch_off()
    before, after = drill.floors(ON), drill.world.last_event()
    pem = drill.fleet.folder / "fleet/online/keys/director.pem"
    old = CryptoSigner(load_pem_private_key(pem.read_bytes(), None))
    with drill.world.broker() as broker:
        earlier = broker.desired(ON)
    drill.follow("Director")
    drill.reaches(ON, targets=before["targets"]["targets"] + 1, counter=before["counter"] + 1)
    drill.switch_on()
    drill.reaches(OFF, targets=before["targets"]["targets"] + 1)
    with drill.world.broker() as broker:
        now = broker.desired(ON)
        broker.send(ON, stolen(drill, now, old))
        drill.world.refusal("signature", after, ON)
        broker.send(ON, earlier)  # with the old catalog, which named the old key
        drill.world.refusal("metadata_rollback", after, ON)
        after = drill.world.last_event()
        broker.send(ON, {**earlier, "bundle": now["bundle"]})  # genuine once, and not expired
        drill.world.refusal("signature", after, ON)
    drill.runs("1.0.0")


def test_every_key_of_a_stolen_server_is_rotated_in_one_step(drill: Drill):
    """One root and one targets replace all four; the device that was off takes both later."""
    drill.switch_off()
    before = drill.floors(ON)
    drill.follow("The server was broken into")
    after = {"root": before["root"] + 1, "targets": before["targets"]["targets"] + 1}
    drill.reaches(ON, counter=before["counter"] + 1, **after)
    drill.switch_on()
    drill.reaches(OFF, **after)
    assert drill.floors(ON)["keys"]["timestamp"] != before["keys"]["timestamp"]
    drill.runs("2.0.0")
