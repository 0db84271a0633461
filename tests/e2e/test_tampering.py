"""One flipped bit anywhere, somebody else's assignment, yesterday's: refused, said, served on."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.e2e.world import World, until


def flip(data: bytes, at: int) -> bytes:
    """Return `data` with one bit of byte `at` flipped."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def flipped_payload(desired: dict) -> dict:
    """Flip one bit of the signed payload inside the assignment's envelope."""
    envelope = json.loads(base64.b64decode(desired["assignment"]))
    payload = base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(flip(payload, len(payload) // 2)).decode()
    return {**desired, "assignment": base64.b64encode(json.dumps(envelope).encode()).decode()}


def serves(world: World, name: str, version: str) -> bool:
    """Whether the device answers, and by that version."""
    return world.version(name) == version


def test_a_flipped_bit_in_the_assignment_is_refused(world: World):
    """The signature no longer holds; the device says so and serves on."""
    before, after = world.version("cam-1"), world.last_event()
    with world.broker() as broker:
        broker.send("cam-1", flipped_payload(broker.desired("cam-1")))
        assert world.refusal("signature", after, "cam-1")["step"] == "receive"
    assert serves(world, "cam-1", before)


def test_an_assignment_for_another_device_is_refused(world: World):
    """A genuine assignment of cam-2 means nothing to cam-1."""
    before, after = world.version("cam-1"), world.last_event()
    with world.broker() as broker:
        broker.send("cam-1", broker.desired("cam-2"))
        assert world.refusal("wrong_device", after, "cam-1")["step"] == "receive"
    assert serves(world, "cam-1", before)


def test_an_older_assignment_is_refused(world: World):
    """What was true once is not true again: the counter has moved on."""
    with world.broker() as broker:
        old = broker.desired("cam-1")
        target = "2.0.0" if world.version("cam-1") == "1.0.0" else "1.0.0"
        assert world.roll_out(target)["state"] == "completed"
        after = world.last_event()
        broker.send("cam-1", old)
        world.refusal("replayed", after, "cam-1")
    assert serves(world, "cam-1", target)


def test_garbage_is_refused(world: World):
    """Something that is no document at all changes nothing but the event log."""
    before, after = world.version("cam-1"), world.last_event()
    with world.broker() as broker:
        broker.send("cam-1", b'{"v":1,"counter":' + b"[" * 5000)
        world.refusal("malformed", after, "cam-1")
    assert serves(world, "cam-1", before)


@pytest.mark.parametrize("what", ["manifest", "model"])
def test_a_flipped_bit_in_the_blob_store_is_refused(world: World, what: str):
    """The server's disk lies about a blob: the digest does not hold, the old version serves on."""
    before = world.version("cam-1")
    target = "2.0.0" if before == "1.0.0" else "1.0.0"
    found = world.fleet.get(f"/v1/models/digits/versions/{target}")
    digest = found["manifest"]
    if what == "model":
        manifest = world.fleet.api.get(f"/v1/models/digits/versions/{target}/manifest").json()
        digest = next(
            file["digest"] for file in manifest["variants"][0]["files"] if file["role"] == "onnx"
        )
    forget(world, digest)
    path = blob(world.fleet.folder / "fleet", digest)
    true = path.read_bytes()
    after = world.last_event()
    # In the manifest, a digit of the time of creation: still a manifest, but not the signed one.
    at = true.index(b'"created"') + 15 if what == "manifest" else len(true) // 2
    overwrite(path, flip(true, at))
    try:
        created = world.start_rollout(target, "--device", "cam-1")
        world.refusal("digest_mismatch", after, "cam-1")
        assert serves(world, "cam-1", before)
    finally:
        overwrite(path, true)
    # The device goes on trying while the deployment is wanted: with the true bytes it gets there.
    until(
        "the deployment's end",
        lambda: world.fleet.get(f"/v1/rollouts/{created['id']}")["state"] != "running",
        60.0,
    )
    assert world.version("cam-1") in {before, target}


def blob(fleet: Path, digest: str) -> Path:
    """Return where the fleet manager keeps a blob."""
    return next(fleet.rglob(digest.removeprefix("sha256:")))


def overwrite(path: Path, data: bytes) -> None:
    """Replace a read-only file in place, as a bad disk would."""
    path.chmod(0o644)
    path.write_bytes(data)


def forget(world: World, digest: str) -> None:
    """Remove the device's own copy of a blob, so that it must be fetched again."""
    for path in (world.fleet.folder / "cam-1" / "state").rglob(digest.removeprefix("sha256:")):
        path.unlink()
