"""A container among other workers: under load, crashing, short of memory, without its docker."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edgefleet_agent.ipc import control
from edgefleet_shared.package import Limits
from tests.agent.container_world import Device
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.dockerd import Dockerd, Image, Registry, server_program
from tests.models import linear, package

pytestmark = pytest.mark.dockerd
CRASH, STARVE, EXIT = -1001, -1002, -1004  # see oip_server.c
ASK = fp32("x", [1, 2, 3, 4], [1, 4])


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


class Clients:
    """Ask the gateway without a pause, each on a connection of its own, until closed."""

    def __init__(self, gateway: Gateway, count: int = 3) -> None:
        self.gateway = gateway
        self.answered: list[int] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            self.answered.append(self.gateway.infer(ASK)[0])

    def more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        before = len(self.answered)
        wait_for(lambda: len(self.answered) >= before + count, "answers")

    def close(self) -> list[int]:
        """End; return every status."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return self.answered


def test_cpu_and_container_swap_to_and_fro_without_a_lost_request(
    gateway, device, registry, program, tmp_path
):
    """Six swaps of one name under load, ONNX to container and back: 0 failed, none left over."""
    boxed = device.package(registry.put(Image(program, SCALE=2)), concurrency=4)
    plain = package(tmp_path, linear(2.0))
    gateway.control.serve(plain)
    clients = Clients(gateway)
    for _ in range(3):
        clients.more()
        device.serve(gateway, boxed)
        clients.more()
        assert gateway.control.ask(control.Release, plain.spec.digest, 10).ok
        gateway.control.serve(plain)
        clients.more()
        assert gateway.control.ask(control.Release, boxed.spec.digest, 10).ok
        device.containers.sweep([])
    statuses = clients.close()
    assert set(statuses) == {200}
    assert device.container(boxed) is None
    stats = gateway.control.stats()
    assert stats[boxed.spec.digest].requests > 0
    assert [s.server_errors + s.rejected for s in stats.values()] == [0, 0]


def test_a_crash_in_a_container_is_a_workers_crash(gateway, device, registry, program, tmp_path):
    """Its request is answered by the standby; docker starts it again; the third crash ends that."""
    plain = package(tmp_path, linear(3.0))
    gateway.control.serve(plain)
    boxed = device.package(registry.put(Image(program, SCALE=2)))
    device.serve(gateway, boxed)
    for number, how in enumerate((CRASH, EXIT, CRASH), 1):
        status, answer, _ = gateway.infer(fp32("x", [how, 0, 0, number - how], [1, 4]))
        assert (status, answer["model_version"]) == (200, "1.0.0")
        assert answer["outputs"][0]["data"] == [3.0 * number, 3.0 * number]
        gateway.control.wait_event("worker_died")
        if number < 3:
            gateway.control.wait_event("restarted")
            assert gateway.infer(ASK)[1]["model_version"] == "2.0.0"
    told = gateway.control.wait_event("quarantined")
    assert (told.digest, told.fallback) == (boxed.spec.digest, plain.spec.digest)
    assert gateway.infer(ASK)[1]["model_version"] == "1.0.0"
    wait_for(lambda: len(device.ended) >= 3, "what the keeper tells")
    assert {one.code for one in device.ended} == {"crashed"}


def test_out_of_memory_and_killed_while_nobody_asks_are_noticed(
    gateway, device, registry, program, tmp_path
):
    """The kernel kills it at its own limit, not the machine's; docker starts it again each time."""
    gateway.control.serve(package(tmp_path, linear(3.0)))
    limits = Limits(memory_mb=32, load_s=15)
    boxed = device.package(registry.put(Image(program, SCALE=2)), limits=limits)
    device.serve(gateway, boxed)
    status, answer, _ = gateway.infer(fp32("x", [STARVE, 0, 0, 0], [1, 4]))
    assert (status, answer["model_version"]) == (200, "1.0.0")
    gateway.control.wait_event("restarted")
    assert gateway.infer(ASK)[1]["model_version"] == "2.0.0"
    os.kill(device.container(boxed)["State"]["Pid"], signal.SIGKILL)
    gateway.control.wait_event("restarted")
    assert gateway.infer(ASK)[1]["model_version"] == "2.0.0"
    ended = wait_for(lambda: len(device.ended) == 2 and device.ended, "the keeper's word")
    assert [one.code for one in ended] == ["out_of_memory", "crashed"]


def test_a_dockerd_that_goes_and_comes_back_brings_its_containers(tmp_path, gateway, program):
    """Meanwhile the standby answers, nothing fails, and who asks is told `unsupported_runtime`."""
    dockerd, registry = Dockerd(), Registry()
    device = Device(dockerd, "cam-1")
    try:
        boxed = device.package(registry.put(Image(program, SCALE=2)))
        gateway.control.serve(package(tmp_path, linear(2.0)))
        device.serve(gateway, boxed)
        clients = Clients(gateway, 1)
        dockerd.stop()
        gateway.control.wait_event("worker_died")
        assert not device.containers.can_run(boxed.spec.container.image)
        dockerd.start()
        gateway.control.wait_event("restarted")
        wait_for(lambda: gateway.infer(ASK)[1]["model_version"] == "2.0.0", "the container again")
        assert set(clients.close()) == {200}
    finally:
        device.close()
        registry.close()
        dockerd.close()
