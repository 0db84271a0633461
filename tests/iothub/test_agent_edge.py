"""The agent as a module of IoT Edge: no key of its own, its twin as configuration, enrolment."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefleet_agent import compose, config
from edgefleet_agent.awaiting import await_ticket
from edgefleet_agent.identity import Identity
from edgefleet_agent.tls import Tls
from edgefleet_agent.twin_settings import Live
from edgefleet_agent.ways import EDGE
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.workload import Workload
from edgefleet_shared import twin
from edgefleet_shared.errors import InvalidInputError
from tests.agent.test_enrollment import Registrar
from tests.agent.world import World, until
from tests.transport_caller import Done, Events, sealed

# The SDK leaves sockets of paho 1.6.1 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

DEVICE, MODULE = "cam-1", "edgefleet"


class Edge:
    """A device with IoT Edge on it, and the agent's module, whose environment is ours."""

    def __init__(self, double: AzureDouble, folder: Path) -> None:
        self.double, self.hub = double, double.hub()
        self.config = config.load(
            None,
            {
                "EDGEFLEET_AGENT_IOTHUB_AUTH": "edge",
                "EDGEFLEET_AGENT_STATE_DIR": str(folder / "state"),
                "EDGEFLEET_AGENT_RUN_DIR": str(folder / "run"),
            },
        )

    def write(self, **section: Any) -> None:
        """Change our section of the module's desired properties."""
        patch = {"properties": {"desired": {twin.SECTION: section}}}
        self.hub.patch_twin(DEVICE, MODULE, patch)


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    """The workload API answers; its environment is set."""
    names = ("edge.azure-devices.test",)
    with AzureDouble(tmp_path / "azure", names, websockets=False) as double:
        made = Edge(double, tmp_path)
        made.hub.registry.create(DEVICE, edge=True)
        made.hub.registry.create(DEVICE, MODULE, managed_by="iotEdge")
        socket = tmp_path / "workload.sock"
        with Workload(made.hub, DEVICE, socket, double.address(), double.ca_pem) as workload:
            for name, value in workload.environment(MODULE).items():
                monkeypatch.setenv(name, value)
            yield made


def test_a_module_speaks_by_what_the_runtime_signs_and_obeys_its_twin(edge, tmp_path):
    """Document, report and settings go by the module's own twin; no key is in any file."""
    live = Live(edge.config, tmp_path / "twin.json")
    nothing = Path()
    transport = compose.iothub(
        edge.config, EDGE, DEVICE, Tls(nothing, nothing, nothing), lambda: None, live.heed, "boot-1"
    )
    events = Events()
    edge.write(config={"telemetry_interval_s": 30})
    transport.start(events)
    try:
        until(lambda: events.connected, f"connected: {events.disconnected}")
        until(lambda: live.interval_s == 30, "the twin's interval")
        patch = {"properties": {"desired": twin.document_patch(b"document")}}
        edge.hub.patch_twin(DEVICE, MODULE, patch)
        until(lambda: events.desired == [b"document"], "desired")
        assert live.interval_s == 30, "a patch that does not name it leaves it"
        edge.write(config={"telemetry_interval_s": None})
        until(lambda: live.interval_s == 60, "taken back")
        done = Done()
        transport.publish_reported(sealed("e30="), done)
        until(lambda: done.told == [True], "reported")
        assert not edge.hub.device_twin(DEVICE)["reported"].get(twin.SECTION)
    finally:
        transport.stop()


def test_a_runtime_that_does_not_answer_is_waited_for(edge, monkeypatch):
    """The workload API may come later than the module."""
    monkeypatch.setenv("IOTEDGE_WORKLOADURI", "unix:///nowhere/workload.sock")
    nothing = Path()
    transport = compose.iothub(
        edge.config, EDGE, DEVICE, Tls(nothing, nothing, nothing), lambda: None, lambda *_: None
    )
    events = Events()
    transport.start(events)
    try:
        until(lambda: events.disconnected, "no runtime")
        assert "IoT Edge runtime" in events.disconnected[0]
        assert not events.refused, "no certificate of ours would mend it"
    finally:
        transport.stop()


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    """A fleet manager that enrols devices."""
    world = World()
    made = Registrar(world)
    yield made
    made.close()
    world.close()


def waiting(edge: Edge) -> threading.Thread:
    """Begin to wait for a ticket, as `edgefleet-agent run` does."""
    thread = threading.Thread(target=await_ticket, args=(edge.config, os.environ), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("group", ["", "line"])
def test_a_module_that_is_not_enrolled_enrols_by_the_ticket_in_its_twin(edge, registrar, group):
    """One that is none is passed over; then the right one makes it a device of the fleet.

    By a group's ticket it gets the id that IoT Edge has for the device.
    """
    thread = waiting(edge)
    edge.write(ticket="no ticket at all")
    edge.write(ticket=registrar.ticket("" if group else DEVICE, group=group))
    thread.join(20)
    assert not thread.is_alive()
    identity = Identity(edge.config.state / "identity")
    assert (identity.device, identity.fleet) == (DEVICE, "demo")
    assert registrar.asked == 1
    kinds = {e.properties.get(twin.KIND) for e in edge.hub.log.all()}
    assert "presence" not in kinds, "nobody speaks before there is an identity"
    await_ticket(edge.config, {})  # enrolled: nothing is awaited


def test_outside_of_the_runtime_nothing_is_awaited(edge):
    """Who is configured as a module and is none is told so at once."""
    with pytest.raises(InvalidInputError, match="IOTEDGE_DEVICEID is not set"):
        await_ticket(edge.config, {})
