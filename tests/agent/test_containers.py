"""Container variants on a real dockerd, behind a real gateway: reached, shut in, swapped, lost."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from edgefleet_agent.ipc import control
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.package import Limits
from tests.agent.container_world import Device, inside
from tests.agent.gateways import Gateway, fp32
from tests.dockerd import Image, Registry, server_program
from tests.models import Package

pytestmark = pytest.mark.dockerd
SLEEP = -1005  # see oip_server.c


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The server that every image here holds."""
    return server_program(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def registry():
    """Where images are pulled from."""
    one = Registry()
    yield one
    one.close()


@pytest.fixture
def device(dockerd):
    """A device with a keeper."""
    one = Device(dockerd, "cam-1")
    yield one
    one.close()


class Served(NamedTuple):
    """A gateway that serves a container, for tests that only ask."""

    gateway: Gateway
    device: Device
    package: Package


@pytest.fixture(scope="module")
def served(dockerd, registry, program):
    """One container with limits of its own, that takes eight requests at once."""
    gateway, device = Gateway(), Device(dockerd, "cam-0")
    limits = Limits(memory_mb=48, load_s=15)
    image = registry.put(Image(program, SCALE=2))
    one = device.package(image, limits=limits, pids=20, cpus=0.5, concurrency=8)
    device.serve(gateway, one)
    yield Served(gateway, device, one)
    gateway.close()
    device.close()


def test_an_image_serves_the_inference_protocol(served):
    """Pulled by digest, proved by its golden vectors, it answers as an ONNX model does."""
    gateway = served.gateway
    status, answer, _ = gateway.infer(fp32("x", [1, 2, 3, 5], [1, 4]))
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [22.0, 22.0]


def test_a_container_has_its_limits_and_no_rights(served):
    """Memory, processors, processes, a read-only root, no capability, no network, not root."""
    device, one = served.device, served.package
    found = device.container(one)
    host = found["HostConfig"]
    writable = {mount["Destination"] for mount in found["Mounts"] if mount["RW"]}
    assert writable == {"/run/edgefleet"}
    assert host["Memory"] == host["MemorySwap"] == 48 * 2**20
    assert (host["NanoCpus"], host["PidsLimit"], host["NetworkMode"]) == (500_000_000, 20, "none")
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    facts = inside(device, one)
    assert facts.startswith(f"uid 65532 gid 65532 root {errno.EROFS} tmp 0 labels ")
    assert "no\nyes\n" in facts
    assert "NoNewPrivs:\t1" in facts
    assert "CapEff:\t0000000000000000" in facts
    assert "CapBnd:\t0000000000000000" in facts
    assert [line.split(":")[0].strip() for line in facts.splitlines() if ": " in line][-1] == "lo"


def test_its_worker_has_one_socket_to_ask_by_and_no_network(served):
    """The bridge is shut in as any worker: it cannot make a connection by itself."""
    gateway = served.gateway
    (worker,) = gateway.control.ask(control.Hello).workers
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000000000000" in status
    assert gateway.control.ask(control.Hello).sandbox[:2] == ["rlimits", "no_new_privs"]
    sockets = [f for f in Path(f"/proc/{worker.pid}/fd").iterdir() if "socket" in str(f.readlink())]
    assert len(sockets) <= 2 + 1 + 8, "its gateway, whom it asks, a lifeline, and its connections"


def test_several_requests_are_in_the_container_at_once(served):
    """Eight requests of 0.3 s each are answered in far less than 2.4 s, if it takes eight."""
    gateway = served.gateway
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(gateway.infer, [fp32("x", [SLEEP, 0, 0, 0], [1, 4])] * 8))
    assert [status for status, _, _ in answers] == [200] * 8
    assert time.monotonic() - begun < 2.0


def test_errors_of_the_container_are_errors_of_a_request(served):
    """What the model refuses is 400, and the worker lives."""
    gateway = served.gateway
    assert gateway.infer(fp32("x", [1, 2, 3], [1, 3]))[0] == 400
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"CRASH_AT_START": 1}, "crashed"),
        ({"GREEDY_AT_START": 1}, "out_of_memory"),
        ({"NEVER_READY": 1}, "load_timeout"),
        ({"SCALE": 3}, "golden_mismatch"),
    ],
)
def test_an_image_that_does_not_prove_itself_is_told_why(
    gateway, device, registry, program, said, code
):
    """Crash, memory, health and wrong answers each have their code; no container is left."""
    limits = Limits(memory_mb=32, load_s=4 if code == "load_timeout" else 30)
    one = device.package(registry.put(Image(program, **said)), limits=limits)
    with pytest.raises(AssertionError, match=code):
        device.serve(gateway, one)
    assert device.container(one) is None


def test_an_image_brought_by_hand_is_known_by_its_own_id(gateway, device, program):
    """`docker load` keeps no registry's digest; the image's id is as good, nothing is pulled."""
    image = Image(program, SCALE=2, BY="hand")
    with contextlib.closing(device.dockerd.client()) as client:
        client.images.load(image.saved())
    device.serve(gateway, device.package(f"{image.name}@{image.id}"))
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    device.containers.sweep([])
    device.containers.drop_images([])
    with contextlib.closing(device.dockerd.client()) as client:
        assert client.images.get(image.id), "an image that we did not pull is not ours to remove"
        client.images.remove(image.id)


def test_an_image_that_is_nowhere_is_not_found(device, registry):
    """The registry does not have it: said so, nothing is created."""
    one = device.package(f"{registry.host}/models/none@sha256:{'0' * 64}")
    with pytest.raises(UnavailableError) as caught, device.opened(one):
        pass
    assert caught.value.code == "image_pull_failed"


def test_a_pull_tells_how_far_it_is_and_its_image_goes_again(device, registry, program):
    """Bytes of the layers while they come; what no slot needs is removed, since we pulled it."""
    seen = []
    image = registry.put(Image(program + random.Random(1).randbytes(200_000)))
    assert device.containers.bring(image, threading.Event(), lambda *at: seen.append(at))
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    assert seen[-1][1] > 100_000
    device.containers.drop_images([])
    with contextlib.closing(device.dockerd.client()) as client:
        assert not [i for i in client.images.list() if image in i.attrs["RepoDigests"]]


def test_a_registry_is_told_who_we_are(dockerd, program):
    """Credentials come from the device's configuration; without them nothing is pulled."""
    registry = Registry()
    registry.authorization = "Basic " + base64.b64encode(b"cam:secret").decode()
    image = registry.put(Image(program, SCALE=2, WHO="cam"))
    stranger = Device(dockerd, "cam-2")
    known = Device(dockerd, "cam-3", registries={registry.host: ("cam", "secret")})
    try:
        with pytest.raises(UnavailableError):
            stranger.containers.bring(image, threading.Event(), lambda *_: None)
        assert known.containers.bring(image, threading.Event(), lambda *_: None)
    finally:
        stranger.close()
        known.close()
        registry.close()


def test_a_server_on_tcp_is_reached_on_a_network_of_its_own(gateway, device, registry, program):
    """An image that knows no Unix socket listens on a port; nobody outside reaches it."""
    image = registry.put(Image(program, SCALE=2, PORT=9000))
    one = device.package(image, port=9000)
    device.serve(gateway, one)
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    with contextlib.closing(device.dockerd.client()) as client:
        (network,) = client.networks.list(names=[f"edgefleet-cam-1-{one.spec.digest[7:19]}"])
        assert network.attrs["Internal"]
        device.containers.sweep([])
        assert not client.networks.list(names=[network.name])


def test_a_link_in_the_sockets_place_leads_nowhere(gateway, device, registry, program):
    """A container that puts a link there does not make the gateway talk to somebody else."""
    limits = Limits(memory_mb=64, load_s=3)
    one = device.package(registry.put(Image(program, SCALE=2)), limits=limits)
    device.serve(gateway, one)
    link = device.home(one) / "socket" / "oip.sock"
    link.unlink()
    link.symlink_to(device.dockerd.socket)
    outcome = gateway.control.ask(
        control.Prove, one.spec, files=[*one.open(), os.open(device.home(one), os.O_RDONLY)]
    )
    assert outcome.code == "load_timeout", outcome


def test_a_container_is_found_again_and_never_twice(gateway, device, registry, program):
    """A new keeper adopts what runs; what no slot needs goes, another device's stays."""
    image = registry.put(Image(program, SCALE=2))
    one = device.package(image)
    device.serve(gateway, one)
    before = device.container(one)["Id"]
    other = Device(device.dockerd, "cam-9")
    again = Device(device.dockerd, "cam-1", folder=device.folder)
    try:
        theirs = other.package(image)
        with other.opened(theirs):
            pass
        with again.opened(one):
            pass
        assert again.container(one)["Id"] == before
        assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
        again.containers.sweep([])
        with contextlib.closing(device.dockerd.client()) as client:
            left = {c.labels["io.edgefleet.device"] for c in client.containers.list(all=True)}
            assert "cam-9" in left
            assert "cam-1" not in left
    finally:
        other.close()
        again.containers.close()
