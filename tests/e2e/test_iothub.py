"""A fleet on an IoT Hub: a rollout over both ways, a device that moves, cuts and kills."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from typing import Any

import pytest

from edgefleet_provisioning.demo import hub as demo_hub
from edgefleet_provisioning.demo.fleet import AGENT
from edgefleet_provisioning.iothub_double.__main__ import facts
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_shared import twin
from tests.e2e.world import ENDED, World, until, whole_fleet


class OwnHub(demo_hub.Hub):
    """The demo's hub in this process, so that its connections can be cut."""

    double: AzureDouble

    def start(self) -> None:
        self._folder.mkdir()
        OwnHub.double = AzureDouble(self._folder, hubs=("azure",), websockets=False)
        self.double.start()
        self.double.hub().registry.trust(self._ca.read_bytes())
        self._facts = facts(self.double, self._folder)


@pytest.fixture(scope="module")
def world():
    """Two devices on the hub, digits 1.0.0 on both, 2.0.0 published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgefleet_provisioning.demo.fleet.Hub", OwnHub)
        try:
            with whole_fleet("ef-hub-", ("1.0.0", "2.0.0"), demo_hub.IOTHUB) as whole:
                yield whole
        finally:
            OwnHub.double.stop()


def move(world: World, name: str, lines: str) -> None:
    """Change a device's transport in its configuration and start its agent anew."""
    config = world.fleet.folder / name / "agent.toml"
    text = re.sub(r"\[transport\]\n(.+\n)*", f"[transport]\n{lines}\n", config.read_text())
    config.write_text(text)
    world.fleet.processes.end(name)
    world.fleet.processes.start(name, [*AGENT, "run", "--config", str(config)])


def way(world: World, name: str) -> str:
    """Return by which way the fleet manager reaches a device."""
    return world.fleet.get(f"/v1/devices/{name}")["way"]


def swaps(world: World) -> Counter[tuple[str, str]]:
    """Return how many receipts of an activation there are of each device and deployment."""
    items = world.fleet.get("/v1/receipts", page_size="500")["items"]
    made = [item for item in items if item["kind"] == "activate"]
    return Counter((item["device"], item["deployment"]) for item in made)


def finished(world: World, rollout: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a rollout and return it."""
    path = f"/v1/rollouts/{rollout['id']}"
    return until("its end", lambda: (r := world.fleet.get(path))["state"] in ENDED and r, 60.0)


def test_one_rollout_over_both_ways_and_a_device_that_moves(world: World):
    """One device goes to MQTT and back; counter, history and model go with it."""
    before = world.fleet.get("/v1/devices/cam-2")
    assert (way(world, "cam-1"), before["way"]) == ("azure", "azure")
    pong = world.fleet.edgefleet("iothub", "ping", "azure", "cam-1")
    assert pong["boot"] == world.fleet.get("/v1/devices/cam-1/state")["reported"]["boot"]
    ca = world.fleet.folder / "fleet" / "online" / "keys" / "device-ca.crt"
    move(world, "cam-2", f'kind = "mqtt"\nurl = "{world.fleet.ready["broker"]}"\nca = "{ca}"\n')
    until("cam-2 on MQTT", lambda: way(world, "cam-2") == "mqtt")
    assert world.version("cam-2") == "1.0.0"
    assert world.roll_out("2.0.0")["state"] == "completed"
    assert [world.version(name) for name in world.names] == ["2.0.0", "2.0.0"]
    move(world, "cam-2", f'ca = "{OwnHub.double.ca_file.absolute()}"\n')
    until("cam-2 at its hub", lambda: way(world, "cam-2") == "azure")
    assert world.roll_out("1.0.0")["state"] == "completed"
    assert [world.version(name) for name in world.names] == ["1.0.0", "1.0.0"]
    after = world.fleet.get("/v1/devices/cam-2")
    assert after["key"] == before["key"]
    assert after["counter"] > before["counter"]
    assert after["created"] == before["created"]
    until("all receipts", lambda: swaps(world).total() == 6)
    assert set(swaps(world).values()) == {1}


def test_cut_again_and_again_nothing_is_lost_nor_done_twice(world: World):
    """Every connection to the hub breaks each half second while a version goes out and back."""
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.5):
            OwnHub.double.cut()

    seen = swaps(world)
    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        rollouts = [world.start_rollout("2.0.0")]
        until("the swap of both", lambda: {world.version(n) for n in world.names} == {"2.0.0"}, 60)
    finally:
        over.set()
        cutter.join()
    assert finished(world, rollouts[0])["state"] == "completed"
    until("all receipts", lambda: (swaps(world) - seen).total() == 2)
    assert set((swaps(world) - seen).values()) == {1}


def test_the_fleet_manager_killed_while_it_writes_twins(world: World):
    """Killed in the middle of a rollout it goes on where it was; each device swaps once."""
    seen = swaps(world)
    target = "1.0.0" if world.version("cam-1") == "2.0.0" else "2.0.0"
    rollout = world.start_rollout(target)
    os.kill(world.pid("cloud"), signal.SIGKILL)
    world.fleet.start_cloud()
    assert finished(world, rollout)["state"] == "completed"
    assert {world.version(name) for name in world.names} == {target}
    until("all receipts", lambda: (swaps(world) - seen).total() == 2)
    assert set((swaps(world) - seen).values()) == {1}


def test_a_hub_that_lies_changes_nothing(world: World):
    """Garbage, another device's document and an older one are refused; a mixture is asked about."""
    hub = OwnHub.double.hub()

    def document(name: str) -> bytes:
        found = twin.read_document(hub.twin(name)["properties"]["desired"])
        assert found
        assert found.payload
        return found.payload

    older, before = document("cam-1"), world.version("cam-1")
    target = "1.0.0" if before == "2.0.0" else "2.0.0"
    assert world.roll_out(target)["state"] == "completed"
    lies = (
        (twin.document_patch(b'{"v":1'), "malformed"),
        (twin.document_patch(document("cam-2")), "wrong_device"),
        (twin.document_patch(older), "replayed"),
    )
    for patch, code in lies:
        after = world.last_event()
        hub.patch_twin("cam-1", "", {"properties": {"desired": patch}})
        world.refusal(code, after, "cam-1")
        assert world.version("cam-1") == target
    mixed = twin.document_patch(document("cam-2"))
    mixed[twin.SECTION]["document"]["0"] = "x"  # the device fetches its own over HTTPS
    hub.patch_twin("cam-1", "", {"properties": {"desired": mixed}})
    assert world.roll_out(before)["state"] == "completed"
    assert world.version("cam-1") == before
