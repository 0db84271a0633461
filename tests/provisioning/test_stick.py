"""`edgefleet device export-bundle`: a stick that is absent, another's, or pulled out early."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path

import pytest

from edgefleet_provisioning import durable, stick
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment, Desired, SlotAssignment
from tests.fleet_folder import CREATED, small_package

LATER = "2027-01-01T00:00:00Z"
SOON = "2026-11-26T00:00:00Z"


class FakeFleet:
    """What of a fleet manager an export asks: a device, its document, blobs."""

    def __init__(self, device: str = "cam-1", counter: int = 1, version: str = "1.0.0") -> None:
        manifest, data, blobs = small_package(version, counter)
        self.device, self.manifest = device, sha256_digest(data)
        self.blobs = {self.manifest: data, **blobs}
        slot = SlotAssignment(
            mode="run", deployment="d", model=manifest.name, version=version,
            manifest=self.manifest, size=len(data), release_counter=counter,
        )  # fmt: skip
        order = Assignment(1, "f", device, "sha256:k", counter, CREATED, LATER, {"digits": slot})
        envelope = strict_json.encode({
            "payloadType": ASSIGNMENT_TYPE,
            "payload": base64.b64encode(strict_json.encode(order)).decode(),
            "signatures": [{"keyid": "k", "sig": "AA=="}],
        })  # fmt: skip
        dsse.read(envelope, ASSIGNMENT_TYPE)
        stamp = json.dumps({"signed": {"expires": SOON}}).encode()
        sealed = bundle.encode({"timestamp.json": stamp})
        self.document = strict_json.encode(
            Desired(
                1,
                counter,
                CREATED,
                base64.b64encode(envelope).decode(),
                base64.b64encode(sealed).decode(),
                "https://fleet",
            )
        )
        self.asked: list[str] = []

    def get(self, path: str):
        return {"hardware": "generic-x86_64"}

    def raw(self, path: str) -> bytes:
        return self.document

    def stream(self, path: str):
        digest = path.removeprefix("/v1/blobs/").replace("%3A", ":")
        self.asked.append(digest)
        yield self.blobs[digest]


def names(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    """/media/usb without a stick is refused before anything is fetched; --create makes it."""
    with pytest.raises(InvalidInputError) as caught:
        stick.check_target(tmp_path / "usb", create=False)
    assert caught.value.code == "missing_folder"
    assert "--create" in caught.value.hint
    assert not (tmp_path / "usb").exists()
    stick.check_target(tmp_path / "usb" / "cam-1", create=True)
    assert (tmp_path / "usb" / "cam-1").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="is no folder"):
        stick.check_target(tmp_path / "file", create=False)
    with pytest.raises(InvalidInputError) as caught:
        stick.check_target(tmp_path / "file" / "x", create=True)
    assert caught.value.code == "not_writable"


def test_an_empty_mount_point_is_no_stick(tmp_path):
    """A folder below /media on the machine's own disk is where a stick would be, and is not."""
    usb = tmp_path / "media" / "usb"
    usb.mkdir(parents=True)
    with pytest.raises(InvalidInputError) as caught:
        stick.check_target(usb, create=False, media=[tmp_path / "media"])
    assert caught.value.code == "not_mounted"
    stick.check_target(usb, create=True, media=[tmp_path / "media"])
    stick.check_target(usb, create=False, media=[tmp_path / "elsewhere"])
    shm = Path("/dev/shm")
    stick.check_target(shm, create=False, media=[Path("/dev")])


def test_a_bundle_is_told_and_whole(tmp_path):
    """Counter, versions, bytes and until when; a second export fetches nothing again."""
    fleet = FakeFleet()
    found = stick.export(fleet, "cam-1", tmp_path)
    assert found.versions == {"digits": "1.0.0"}
    assert (found.counter, found.blobs, found.until) == (1, 2, SOON)
    assert found.bytes == sum(map(len, fleet.blobs.values()))
    fleet.asked.clear()
    assert stick.export(fleet, "cam-1", tmp_path) == found
    assert not fleet.asked


def test_another_devices_bundle_is_left_alone(tmp_path):
    """One folder a device: the second export would take the first one's document away."""
    stick.export(FakeFleet("cam-1"), "cam-1", tmp_path)
    before = (tmp_path / "desired.json").read_bytes()
    with pytest.raises(InvalidInputError) as caught:
        stick.export(FakeFleet("cam-2"), "cam-2", tmp_path)
    assert (caught.value.code, "cam-2" in caught.value.hint) == ("exists", True)
    assert (tmp_path / "desired.json").read_bytes() == before


STEPS = 24
"""More fsyncs and renames than one export of a new version makes."""


def test_pulled_out_at_any_moment_the_old_bundle_is_whole(tmp_path, monkeypatch):
    """At every fsync and rename the stick goes: what is there is the old bundle or the new."""
    old, new = FakeFleet(), FakeFleet(counter=2, version="2.0.0")
    whole = 0
    for step in range(STEPS):
        folder = tmp_path / str(step)
        folder.mkdir()
        stick.export(old, "cam-1", folder)
        with monkeypatch.context() as patch:
            left = [step]

            def pulled(real):
                def act(*arguments):
                    left[0] -= 1  # noqa: B023 - used at once
                    if left[0] < 0:  # noqa: B023
                        raise OSError(errno.EIO, "Input/output error")
                    return real(*arguments)

                return act

            patch.setattr(os, "fsync", pulled(os.fsync))
            patch.setattr(Path, "replace", pulled(Path.replace))
            try:
                stick.export(new, "cam-1", folder)
                whole += 1
            except InvalidInputError as error:
                assert error.code == "not_writable"
        document = (folder / "desired.json").read_bytes()
        assert document in {old.document, new.document}
        fleet = old if document == old.document else new
        blobs = folder / "blobs" / "sha256"
        for digest, data in fleet.blobs.items():
            assert (blobs / digest.removeprefix("sha256:")).read_bytes() == data
        (blobs / ".left.partial").touch()  # as a process that was killed leaves it
        stick.export(new, "cam-1", folder)
        assert not [name for name in names(folder) if name.endswith(".partial")]
    assert 0 < whole < STEPS, "the series ends before it began, or never reaches the end"
    assert (folder / "desired.json").stat().st_mode & 0o777 == durable.PUBLIC
