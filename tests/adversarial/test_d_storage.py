"""Section D, the disk: archives, rot, disks that fill up, deltas."""

from __future__ import annotations

import ast
import base64
import json
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from edgefleet_agent.config import Store as StoreConfig
from edgefleet_agent.fetch import Fetcher
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.store import Store
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import decode_manifest
from tests.adversarial.archives import ARCHIVES
from tests.adversarial.device import Device
from tests.adversarial.manifests import DIGEST as FOUR
from tests.adversarial.manifests import manifest_with
from tests.agent.blob_server import BlobServer
from tests.agent.running import Agent
from tests.agent.world import World, until
from tests.faults import disk_full
from tests.faults.power_cut import compiler
from tests.house import tree
from tests.models import linear

BODY = bytes(range(256)) * 1000
DIGEST = sha256_digest(BODY)


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device with a real gateway that serves 1.0.0, which doubles."""
    device = Device(world).start()
    device.one = device.serve()
    yield device
    device.close()


def test_36_an_archive_as_a_model_is_no_model_and_is_not_opened(world, device):
    """Signed by a publisher, assigned, fetched: refused as no model; no file but the blobs came."""
    before = device.files()
    for number, (name, make) in enumerate(ARCHIVES.items(), 2):
        slot = world.publish(f"{number}.0.0", body=make())
        device.assign(slot)
        report = device.fails(slot)
        assert (report["state"], report["reason"]) == ("failed", "not_a_model"), name
        assert device.answers() == 8.0
    blobs = device.config.state / "store" / "blobs" / "sha256"
    foreign = {p for p in device.files() - before if p.parent != blobs}
    assert {p.name for p in foreign} <= {"outbox.db-wal", "outbox.db-shm"}, foreign
    assert not list(device.folder.rglob("*escaped*"))
    assert not Path("/tmp/edgefleet-escaped").exists()
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("name", ARCHIVES)
def test_36_an_archive_as_a_trust_bundle_is_refused(world, name):
    """In place of the metadata: an event, in bounded memory, and nothing else."""
    agent = Agent(world).start()
    try:
        one = world.publish("1.0.0")
        agent.assign(one)
        agent.reaches("succeeded")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        document = json.loads(world.assign(agent.identity, world.publish("2.0.0")))
        document["bundle"] = base64.b64encode(ARCHIVES[name]()).decode()
        agent.transport.send(json.dumps(document).encode())
        until(lambda: agent.transport.reported[-1]["refused"])
        assert agent.transport.reported[-1]["refused"] in {"malformed", "bundle_too_large"}
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000
        assert agent.gateway.routed("digits") == one.manifest
    finally:
        agent.close()


def test_36_the_device_has_nothing_that_opens_archives_or_runs_data():
    """No module of the agent, or of what it shares, imports an archive format or a pickle.

    `collect` alone has tarfile: it writes an archive for people, and has no name that reads one.
    """
    forbidden = {"tarfile", "zipfile", "gzip", "bz2", "lzma", "pickle", "marshal", "shelve", "yaml"}
    found = []
    for path in tree.files(".py"):
        if path.parts[0] not in {"agent", "shared"}:
            continue
        for node in ast.walk(tree.parse(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path, name) for name in names if name.split(".")[0] in forbidden]
            if isinstance(node, ast.Attribute) and node.attr in {"unpack_archive", "extractall"}:
                found.append((path, node.attr))
    collect = Path("agent/edgefleet_agent/inspection/collect.py")
    assert found == [(collect, "tarfile")]
    assert 'tarfile.open(fileobj=buffer, mode="w:gz")' in (tree.ROOT / collect).read_text()


@pytest.fixture(scope="module")
def course():
    """A device that serves 1.0.0, asked for 2.0.0 again and again from the same disk."""
    course = disk_full.Course()
    yield course
    course.close()


needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler for the full disk")


@needs_compiler
@pytest.mark.timeout(180)
def test_37_a_disk_that_is_full_at_any_write_costs_no_service(course):
    """Full from a call on, then not: served all the time, nothing half done left, and updated.

    A sample; `python -m tests.faults.disk_full` takes every call that needs room.
    """
    course.run(0)
    calls = course.calls()
    assert len(calls) > 100
    assert {"write", "pwrite", "fsync", "rename", "create"} <= {c.split()[0] for c in calls}
    parts = 3
    for index in range(parts):
        at = round((index + 0.5) * len(calls) / parts)
        assert course.run(at)["hit"], at


@needs_compiler
def test_37_a_store_that_is_full_fails_the_deployment_and_says_so(course):
    """Only the packages' folder has no room: `store_full` is reported, and 1.0.0 serves on."""
    found = course.run(1, root="store", told="failed")
    assert found == {"hit": True, "state": "failed", "reason": "store_full"}


def rot(device: Device, digest: str) -> Path:
    """Flip one bit of a stored blob, in place, as a bad disk does."""
    path = device.config.state / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    return path


def test_40_a_bit_that_flips_while_the_device_is_off_is_found_before_the_first_load(device):
    """After a reboot the blob is hashed before anything opens it, and fetched again from zero."""
    digest = next(iter(device.record().active.blobs))
    device.stop()
    path = rot(device, digest)
    device.start()
    device.event("blob_corrupt")
    until(lambda: device.answers() == 8.0, "service again")
    assert sha256_digest(path.read_bytes()) == digest


def test_40_a_bit_that_flips_under_a_served_model_is_found_when_its_worker_starts_anew(device):
    """The gateway's restart hashes the open file again; what is wrong is fetched from zero."""
    digest = next(iter(device.record().active.blobs))
    path = rot(device, digest)
    kill_worker(device)
    device.event("blob_corrupt")
    until(lambda: device.answers() == 8.0, "service again")
    assert sha256_digest(path.read_bytes()) == digest
    until(lambda: device.transport.slot("digits")["active"] == device.one.manifest)


def test_40_with_the_server_away_the_previous_version_serves_meanwhile(world, device):
    """Rot of the active version and no network: back to the other one, which is sound."""
    two = device.serve("2.0.0", scale=3.0)
    digest = next(d for d in device.record().active.blobs)
    rot(device, digest)
    good = world.blobs.pop(digest)
    kill_worker(device)
    until(lambda: device.answers() == 8.0, "the previous version")
    world.blobs[digest] = good
    until(lambda: device.answers() == 12.0, "the active version again", 30)
    until(lambda: device.transport.slot("digits")["active"] == two.manifest)


def kill_worker(device: Device) -> None:
    """Kill the worker that serves, so that the gateway starts another by itself."""
    client = GatewayClient(device.run_dir / "control.sock", lambda _: None)
    try:
        pids = [w.pid for w in client.state.workers if w.role == "active"]
    finally:
        client.close()
    os.kill(pids[0], signal.SIGKILL)


def test_41_a_manifest_cannot_offer_a_delta():
    """There is no delta in this version: a manifest that offers one is refused, not half read.

    When deltas come, this row asks for more: a wrong base, an output that is longer than signed and
    a valid patch to a wrong digest must each be refused and end in a full fetch.
    """
    delta = b'"delta_from": [{"base": "%s", "size": 1}], "id": "cpu"' % FOUR.encode()
    with pytest.raises(InvalidInputError) as caught:
        decode_manifest(manifest_with("model.onnx").replace(b'"id": "cpu"', delta))
    assert caught.value.code == "malformed"
    entry = b'"path": "model.onnx", "delta_from": []'
    with pytest.raises(InvalidInputError):
        decode_manifest(manifest_with("model.onnx").replace(b'"path": "model.onnx"', entry))


def test_41_a_valid_blob_of_another_digest_is_refused_and_the_whole_is_fetched(tmp_path):
    """Whatever the bytes were made from: only what hashes to the signed name becomes a blob."""
    other = linear(7.0)
    server = BlobServer({DIGEST: other})
    store, errors = Store(tmp_path / "store", 10_000_000), []
    fetcher = Fetcher(store, StoreConfig(), lambda _: "", errors.append)
    stop = threading.Event()
    thread = threading.Thread(
        target=fetcher.fetch, args=(server.url, DIGEST, len(BODY), stop, lambda _: None)
    )
    thread.start()
    try:
        until(lambda: errors)
        assert not store.has(DIGEST, len(BODY))
        server.blobs[DIGEST] = BODY
        thread.join(20)
        assert store.read(DIGEST, len(BODY)) == BODY
    finally:
        stop.set()
        server.close()
