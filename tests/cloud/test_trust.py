"""The catalog's online side: what owners sign comes in, freshness is added, devices believe it."""

from __future__ import annotations

import base64
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.ngclient import Updater

from edgefleet_cloud.models.acceptance import entry_of
from edgefleet_cloud.trust import chain
from edgefleet_cloud.trust.key_folder import KeyFolder
from edgefleet_cloud.trust.repository import PENDING, MetadataFolder
from edgefleet_cloud.trust.service import Trust
from edgefleet_provisioning.key_changes import Changes
from edgefleet_provisioning.present import read_present
from edgefleet_shared import bundle
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import Assignment
from edgefleet_shared.package import publisher_role
from edgefleet_shared.times import format_time
from edgefleet_shared.trust import DeviceIdentity, open_assignment
from tests.fleet_folder import FleetFolder, small_package, without_targets

NOW = datetime.now(UTC)


class _NoEvents:
    def record(self, session, **event):
        return 0


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def trust_of(folder: FleetFolder, clock=None) -> Trust:
    """Return the online side of a fleet folder."""
    keys = KeyFolder(folder.online / "keys")
    return Trust(MetadataFolder(folder.metadata), keys, _NoEvents(), clock or Clock())


def device_reads(trust: Trust, folder: FleetFolder, tmp_path, target: str = ""):
    """Refresh a device of a cold cache from the bundle, with python-tuf's own client."""
    cache = tmp_path / "device"
    shutil.rmtree(cache, ignore_errors=True)
    updater = Updater(
        str(cache),
        "https://fleet/",
        fetcher=BundleFetcher(bundle.decode(trust.bundle())),
        bootstrap=(folder.metadata / "1.root.json").read_bytes(),
    )
    updater.refresh()
    return updater.get_targetinfo(target) if target else None


def _encode(files):
    return {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}


def _send(cloud, *files):
    return cloud.client.post("/v1/trust/metadata", json=_encode(dict(files)))


def _refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def _two(role):
    return [f"{role}-1", f"{role}-2"]


def test_a_device_believes_the_bundle(cloud, tmp_path):
    """python-tuf's client finds a published manifest through the bundle, from the first root on."""
    manifest, data, blobs = small_package()
    cloud.publish(manifest, data, blobs)
    packed = cloud.client.get("/v1/trust/bundle").content
    names = set(bundle.decode(packed))
    assert names == {
        "1.root.json", "1.targets.json", "2.publisher%2Fdigits.json", "2.snapshot.json",
        "timestamp.json",
    }  # fmt: skip

    class Served:
        bundle = staticmethod(lambda: packed)

    target = device_reads(Served, cloud.folder, tmp_path, "models/digits/1.0.0/manifest.json")
    assert target.hashes["sha256"] == sha256_digest(data).removeprefix("sha256:")


def test_the_metadata_is_a_plain_tuf_repository(cloud):
    """Every file is listed and served bit for bit, with its % escaped or not."""
    names = cloud.client.get("/v1/trust/metadata").json()["files"]
    assert "1.publisher%2Fdigits.json" in names
    for name in names:
        content = (cloud.folder.metadata / name).read_bytes()
        for spelled in (name, name.replace("%", "%25")):
            assert cloud.client.get(f"/v1/trust/metadata/{spelled}").content == content


@pytest.mark.parametrize(
    "name", ["9.root.json", "..%2F..%2Fadmin.token", ".pending", "%2e%2e/keys/snapshot.pem", "x"]
)
def test_nothing_else_of_the_disk_is_served(cloud, name):
    """Absent files, other files and paths that lead out of the folder are all 404."""
    _refused(cloud.client.get(f"/v1/trust/metadata/{name}"), 404, "not_found")


def test_a_new_family_comes_in(cloud, tmp_path):
    """New targets with a delegation and the publisher's first file are accepted together."""
    publisher = CryptoSigner.generate_ecdsa()
    pinned = (cloud.folder.metadata / "1.root.json").read_bytes()
    files = {path.name: path.read_bytes() for path in cloud.folder.metadata.iterdir()}
    changes = Changes(read_present(files, pinned), NOW)
    changes.delegate("faces", publisher.public_key)
    new = changes.finish()
    for name in _two("targets"):
        new["2.targets.json"].sign(cloud.folder.signer(name), append=True)
    new["1.publisher%2Ffaces.json"].sign(publisher)
    files = {name: metadata.to_bytes() for name, metadata in new.items()}
    answer = _send(cloud, *files.items())
    assert answer.status_code == 200, answer.text
    assert "1.publisher%2Ffaces.json" in answer.json()["files"]
    manifest, data, blobs = small_package(name="faces")
    assert cloud.publish(manifest, data, blobs, signer=publisher).status_code == 201
    trust = trust_of(cloud.folder)
    assert device_reads(trust, cloud.folder, tmp_path, "models/faces/1.0.0/manifest.json")
    (event,) = cloud.client.get("/v1/events?filter=type=='trust.accepted'").json()["items"]
    assert event["actor"] == "token/admin"
    assert (event["before"], event["after"]) == (
        {"targets": 1}, {"publisher/faces": 1, "targets": 2}
    )  # fmt: skip


def test_a_root_can_follow(cloud, tmp_path):
    """A next root, signed by enough of the old and new keys, is taken; devices walk the chain."""
    name, data = cloud.folder.resign("root", lambda _: None, _two("root"))
    assert _send(cloud, (name, data)).status_code == 200
    device_reads(trust_of(cloud.folder), cloud.folder, tmp_path)
    assert "2.root.json" in cloud.client.get("/v1/trust/metadata").json()["files"]


@pytest.mark.parametrize(
    ("role", "signers", "code"),
    [
        ("root", ["root-1"], "metadata_signature"),
        ("root", _two("targets"), "metadata_signature"),
        ("targets", ["targets-1"], "metadata_signature"),
        ("targets", _two("root"), "metadata_signature"),
        (publisher_role("digits"), ["targets-1"], "metadata_signature"),
        ("snapshot", ["root-1"], "metadata_name"),
    ],
)
def test_not_enough_signatures(cloud, role, signers, code):
    """Too few signatures, or another role's, change nothing."""
    before = cloud.client.get("/v1/trust/bundle").content
    _refused(_send(cloud, cloud.folder.resign(role, lambda _: None, signers)), 422, code)
    assert cloud.client.get("/v1/trust/bundle").content == before


def test_versions_follow_one_another(cloud):
    """A version that is skipped, repeated or other than its name says is refused."""

    def skip(signed):
        signed.version += 1

    _refused(
        _send(cloud, cloud.folder.resign("targets", skip, _two("targets"))), 409, "metadata_version"
    )
    old = (cloud.folder.metadata / "1.targets.json").read_bytes()
    _refused(_send(cloud, ("1.targets.json", old)), 409, "metadata_version")
    _refused(_send(cloud, ("2.targets.json", old)), 409, "metadata_version")


def test_what_has_expired_is_refused(cloud):
    """Metadata that has expired when it arrives is refused."""

    def expire(signed):
        signed.expires = (NOW - timedelta(hours=1)).replace(microsecond=0)

    answer = _send(cloud, cloud.folder.resign("targets", expire, _two("targets")))
    _refused(answer, 422, "metadata_expired")


def test_a_publisher_only_adds(cloud):
    """By this route a publisher may renew its file; it may neither forget nor add a release."""
    role = publisher_role("digits")
    cloud.publish(*small_package())
    forgets = cloud.folder.resign(role, without_targets, ["publisher-1"])
    _refused(_send(cloud, forgets), 422, "release_changed")
    manifest, data, _ = small_package("2.0.0", 2)
    adds = cloud.folder.release(manifest, data)
    _refused(_send(cloud, ("3.publisher%2Fdigits.json", adds)), 422, "unexpected_release")
    renews = cloud.folder.resign(role, lambda _: None, ["publisher-1"])
    assert _send(cloud, renews).status_code == 200


def test_targets_delegate_as_edgefleet_does(cloud):
    """A delegation to another kind of role, or to more paths than its own, is refused."""

    def foreign(signed):
        role = signed.delegations.roles.pop(publisher_role("digits"))
        role.name = "everything"
        signed.delegations.roles["everything"] = role

    def wider(signed):
        signed.delegations.roles[publisher_role("digits")].paths = ["models/*/*/*"]

    for change in (foreign, wider):
        answer = _send(cloud, cloud.folder.resign("targets", change, _two("targets")))
        _refused(answer, 422, "foreign_delegation")


def test_a_rotated_publisher_brings_its_file(cloud):
    """Targets that name a new publisher key need the publisher's file signed by it."""
    new = CryptoSigner.generate_ecdsa()

    def rotate(signed):
        signed.revoke_key(cloud.folder.signer("publisher-1").public_key.keyid, "publisher/digits")
        signed.add_key(new.public_key, "publisher/digits")

    targets = cloud.folder.resign("targets", rotate, _two("targets"))
    _refused(_send(cloud, targets), 422, "metadata_signature")
    publisher = cloud.folder.current(publisher_role("digits"))
    publisher.signed.version += 1
    publisher.sign(new)
    file = ("2.publisher%2Fdigits.json", publisher.to_bytes())
    assert _send(cloud, targets, file).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"files": {}}, "validation"),
        ({"files": {"2.targets.json": "?"}}, "base64"),
        ({"files": {"2.targets.json": "e30="}}, "malformed_metadata"),
        ({"files": {"timestamp.json": "e30="}}, "metadata_name"),
        ({"files": {"2.director.json": "e30="}}, "metadata_name"),
        ({"files": {"../2.targets.json": "e30="}}, "metadata_name"),
        ({}, "validation"),
    ],
)
def test_malformed_metadata(cloud, body, code):
    """Whatever is sent instead of metadata is refused by its own code."""
    _refused(cloud.client.post("/v1/trust/metadata", json=body), 422, code)


def test_freshness_is_renewed_at_half_life(folder, tmp_path):
    """The timestamp is signed anew every half day, the snapshot every half week; devices agree."""
    clock = Clock()
    trust = trust_of(folder, clock)
    before = trust.bundle()
    younger = (datetime.now(UTC) - NOW) // timedelta(minutes=1) + 1  # than NOW the folder is
    clock.now = NOW + timedelta(hours=11)
    trust.renew()
    assert trust.bundle() == before
    clock.now = NOW + timedelta(hours=13)
    trust.renew()
    files = bundle.decode(trust.bundle())
    assert "1.snapshot.json" in files
    assert chain.read(files).timestamp.version >= 13 * 60 - younger
    assert chain.read(files).timestamp.expires > NOW + timedelta(hours=36)
    clock.now = NOW + timedelta(days=4)
    trust.renew()
    assert chain.read(bundle.decode(trust.bundle())).snapshot.version >= 4 * 24 * 60 - younger
    device_reads(trust, folder, tmp_path)
    assert trust_of(folder, clock).bundle() == trust.bundle()


def test_a_restored_server_is_ahead_of_what_devices_saw(folder, tmp_path):
    """A copy of the folder from before many renewals goes on above them: no device calls it old."""
    copy = tmp_path / "copy"
    shutil.copytree(folder.metadata, copy)
    clock = Clock()
    trust = trust_of(folder, clock)
    for _ in range(10):
        clock.now += timedelta(hours=13)
        trust.renew()
    for hours in (1, 14):
        clock.now += timedelta(hours=hours)
        restored = Trust(
            MetadataFolder(shutil.copytree(copy, tmp_path / f"restored-{hours}")),
            KeyFolder(folder.online / "keys"), _NoEvents(), clock,
        )  # fmt: skip
        restored.renew()
        seen, now = (chain.read(bundle.decode(t.bundle())) for t in (trust, restored))
        assert now.timestamp.version > seen.timestamp.version
        assert now.snapshot.version > seen.snapshot.version


def test_a_server_that_slept_wakes_up(folder):
    """After longer than every online life the repository still loads, and is renewed."""
    clock = Clock(NOW + timedelta(days=30))
    trust = trust_of(folder, clock)
    trust.renew()
    assert chain.read(bundle.decode(trust.bundle())).timestamp.expires > clock.now


def test_the_director_signs_what_devices_open(folder):
    """An assignment signed here opens with the catalog's targets, as a device does it."""
    trust = trust_of(folder)
    expires = format_time(NOW + timedelta(hours=1))
    assignment = Assignment(1, "demo", "cam-1", "sha256:k", 5, format_time(NOW), expires, {})
    targets = folder.current("targets").signed
    me = DeviceIdentity("demo", "cam-1", "sha256:k")
    assert open_assignment(trust.sign(assignment), targets, me, floor=4, now=NOW) == assignment


def _flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(b'"sig"') + 20] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda f: (f.metadata / "1.root.json").unlink(), "metadata_missing"),
        (lambda f: (f.metadata / "timestamp.json").unlink(), "metadata_missing"),
        (lambda f: (f.metadata / "1.targets.json").write_bytes(b"{}"), "malformed_metadata"),
        (lambda f: _flip(f.metadata / "timestamp.json"), "metadata_signature"),
        (lambda f: _flip(f.metadata / "1.publisher%2Fdigits.json"), "metadata_signature"),
        (lambda f: shutil.rmtree(f.metadata), "configuration"),
        (lambda f: (f.online / "keys/director.pem").unlink(), "configuration"),
        (lambda f: (f.online / "keys/snapshot.pem").write_bytes(b"no key"), "configuration"),
        (
            lambda f: shutil.copy(f.online / "keys/director.pem", f.online / "keys/timestamp.pem"),
            "online_key",
        ),
    ],
)
def test_a_broken_repository_is_named_at_start(folder, break_it, code):
    """What is missing, damaged or another fleet's stops the start, with a sentence that says so."""
    break_it(folder)
    with pytest.raises((TrustError, InvalidInputError)) as caught:
        trust_of(folder)
    assert caught.value.code == code


class _DiesAt(MetadataFolder):
    """Loses power before its n-th write."""

    def __init__(self, path, writes):
        super().__init__(path)
        self._left = writes

    def _write(self, name, data):
        if not self._left:
            os._exit(9)
        self._left -= 1
        super()._write(name, data)


@pytest.mark.parametrize("writes", range(6))
def test_killed_at_every_write(folder, tmp_path, writes):
    """Killed before any write of a step, the repository is the old or the new one, and whole."""
    manifest, data, _ = small_package()
    files = {"2.publisher%2Fdigits.json": folder.release(manifest, data)}
    files |= dict([folder.resign("root", lambda _: None, _two("root"))])
    child = os.fork()
    if not child:
        keys = KeyFolder(folder.online / "keys")
        trust = Trust(_DiesAt(folder.metadata, writes), keys, _NoEvents(), Clock())
        try:
            trust.accept(files, entry_of(manifest, data))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (9 if writes < 5 else 0)
    trust = trust_of(folder)
    assert not (folder.metadata / PENDING).exists()
    new = trust.target("digits", "1.0.0") is not None
    assert new == (writes > 0)
    device_reads(trust, folder, tmp_path)
    if not new:
        trust.accept(files, entry_of(manifest, data))
    assert device_reads(trust, folder, tmp_path, "models/digits/1.0.0/manifest.json")
