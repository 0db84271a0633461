"""The connection ends at every kind of packet: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_agent.transports.iothub import transport as transport_module
from edgefleet_provisioning.iothub_double.faults import PACKETS, When
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_shared import twin
from tests.agent.world import until
from tests.iothub_agent import DEVICE, HubWorld
from tests.transport_caller import Events, Sender, sealed

# The SDK leaves sockets of paho 1.6.1 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

SPOKEN = [
    packet
    for packet in PACKETS
    if packet not in {"in:puback", "out:c2d"}
    and not packet.endswith(("ping", "pong"))
    and "register" not in packet
]
"""What an agent and its hub exchange; a ping is a minute away, and it subscribes to no C2D."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubWorld]:
    """A hub with one device that comes back quickly."""
    monkeypatch.setattr(transport_module, "BACKOFF_MIN_S", 0.05)
    made = HubWorld(tmp_path)
    yield made
    made.close()


def exchange(world: HubWorld, packet: str, when: When) -> None:
    """Do everything that an agent does, with one cut in the midst of it; see that all arrived."""
    transport = world.agent()
    events = Events()
    cut = world.double.faults.cut_at(packet, when, device=DEVICE)
    transport.start(events)
    try:
        until(lambda: events.connected, "connected")
        batches = Sender(lambda data, done: transport.publish_batch("events", data, done))
        reports = Sender(transport.publish_reported, newest=True)
        for turn in range(3):
            batches.send(sealed(f"batch-{turn}"))
            reports.send(sealed(f"report-{turn}"))
            world.assign(f"document-{turn}".encode())
            transport.request_desired(turn)
            ping(world)
        until(cut.is_set, f"{packet} never came")
        until(batches.again, "batches")
        until(reports.again, "reports")
        until(lambda: events.desired[-1:] == [b"document-2"], "the last document")
        said = {body for named, body in world.messages() if named.get(twin.KIND) == "ev"}
        assert said == {sealed(f"batch-{turn}") for turn in range(3)}
        assert world.reported() == sealed("report-2")
        assert set(batches.told + reports.told) == {1}, "each done exactly once"
        assert in_order(events.desired), "an older document never follows a newer one"
        assert not events.refused
    finally:
        transport.stop()


def ping(world: HubWorld) -> None:
    """Invoke a method; whether it is answered is the cut's affair."""
    with contextlib.suppress(HubError):  # it is not connected just now
        world.hub.method(DEVICE, "", "ping", b"{}")


def in_order(documents: list[bytes]) -> bool:
    """Return whether documents came in the order of their numbers."""
    return documents == sorted(documents)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("packet", SPOKEN)
def test_a_cut_at_any_packet_loses_nothing(world, packet, when):
    """Before it is looked at, or done and not answered: the agent and the hub agree at last."""
    exchange(world, packet, when)


def test_the_kept_assignment_of_a_hub_survives_cuts_in_a_row(world):
    """A line that breaks again and again slows us down, and holds nothing up for good."""
    transport, events = world.agent(), Events()
    transport.start(events)
    try:
        reports = Sender(transport.publish_reported, newest=True)
        for turn in range(5):
            until(lambda turn=turn: events.connected > turn, "connected")
            reports.send(sealed(f"report-{turn}"))
            world.double.cut(DEVICE)
        until(reports.again, "reports")
    finally:
        transport.stop()
    assert set(reports.told) == {1}
