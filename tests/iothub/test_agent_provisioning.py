"""The agent finds its hub by the Device Provisioning Service, and another one when that fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_agent.transports.iothub import transport as transport_module
from tests.agent.world import until
from tests.iothub_agent import DEVICE, HubWorld
from tests.transport_caller import Done, Events, Sender, sealed

# The SDK leaves sockets of paho 1.6.1 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

HUBS = ("fleet-a", "fleet-b")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubWorld]:
    """Two hubs behind one provisioning service; neither knows the device yet."""
    polling = "azure.iot.device.provisioning.pipeline.constant.DEFAULT_POLLING_INTERVAL"
    monkeypatch.setattr(polling, 0.05)
    monkeypatch.setattr(transport_module, "BACKOFF_MIN_S", 0.05)
    made = HubWorld(tmp_path, HUBS)
    for name in HUBS:
        made.double.hub(name).registry.delete(DEVICE)
    yield made
    made.close()


@pytest.fixture
def start(world: HubWorld):
    """Return what starts an agent that asks the provisioning service."""
    started = []

    def begin(**options):
        service = world.double.provisioning
        options.setdefault("url", f"dps://{service.host}/{service.id_scope}")
        transport, events = world.agent(**options), Events()
        started.append(transport)
        transport.start(events)
        return transport, events

    yield begin
    for transport in started:
        transport.stop()


def certified(world: HubWorld) -> None:
    """Make a group for every device that the fleet's CA has signed."""
    pem = (world.authority / "device-ca.crt").read_text()
    signing = {"signingCertificates": {"primary": {"certificate": pem}}}
    attestation = {"type": "x509", "x509": signing}
    world.double.provisioning.enrolments.put(
        "enrollmentGroups", "fleet", {"attestation": attestation}
    )


def keyed(world: HubWorld, kind: str, name: str) -> str:
    """Make an enrolment by symmetric key; return a file with its key."""
    enrolments = world.double.provisioning.enrolments
    enrolments.put(kind, name, {"attestation": {"type": "symmetricKey"}})
    key = enrolments.whole(kind, name)["attestation"]["symmetricKey"]["primaryKey"]
    path = world.folder / "key.txt"
    path.write_text(key + "\n")
    return str(path)


def assigned(world: HubWorld) -> str:
    """Return the host name that the agent remembers."""
    return json.loads((world.folder / "state/iothub.json").read_text())["host"]


def name_of(world: HubWorld) -> str:
    """Return the name of the hub that the device is connected to."""
    return next(n for n in HUBS if world.double.hub(n).sessions.find(DEVICE))


def test_the_fleets_certificate_finds_its_hub_and_remembers_it(world, start):
    """The second start asks nobody: the provisioning service may be away."""
    certified(world)
    transport, events = start()
    until(lambda: events.connected, f"connected: {events.disconnected}")
    assert assigned(world) == world.double.hub(name_of(world)).host
    transport.stop()
    world.double.provisioning.busy = 1000
    _, again = start()
    until(lambda: again.connected, "connected again")


@pytest.mark.parametrize(
    ("kind", "name", "key_is"),
    [("enrollments", DEVICE, "device"), ("enrollmentGroups", "line", "group")],
)
def test_a_symmetric_key_of_the_device_or_derived_from_the_groups(world, start, kind, name, key_is):
    """The same key opens the service and the hub."""
    file = keyed(world, kind, name)
    transport, events = start(auth="sas", key_file=file, key_is=key_is)
    until(lambda: events.connected, "connected")
    done = Done()
    transport.publish_batch("events", sealed("e30="), done)
    until(lambda: done.told == [True], "held")


def test_who_is_enrolled_nowhere_is_refused_and_told_so(world, start):
    """It goes on trying, a little later each time, with few threads; an enrolment lets it in."""
    _, events = start()
    until(lambda: len(events.disconnected) >= 3, "refused")
    assert events.refused, events.disconnected
    assert "provisioning service" in events.refused[0]
    assert not events.connected
    few = threading.active_count()
    until(lambda: len(events.disconnected) >= 6, "refused again")
    assert threading.active_count() <= few + 3
    certified(world)
    until(lambda: events.connected, "connected")


def test_a_device_that_is_given_another_id_does_not_take_it(world, start):
    """A fleet's device keeps its id everywhere; the enrolment is wrong and is named."""
    keyed(world, "enrollments", "somebody")
    enrolments = world.double.provisioning.enrolments
    found = enrolments.whole("enrollments", "somebody")
    enrolments.put("enrollments", "somebody", {**found, "deviceId": "other"}, found["etag"])
    file = str(world.folder / "key.txt")
    _, events = start(auth="sas", key_file=file, registration_id="somebody")
    until(lambda: events.disconnected, "not connected")
    assert "calls us 'other', not 'cam-1'" in events.disconnected[0]


@pytest.mark.parametrize("how", ["unreachable", "refused"])
def test_when_the_hub_fails_another_one_is_asked_for_and_nothing_is_lost(world, start, how):
    """Off the net three times in a row, or the device is no more known there: the other hub.

    What was not held by the first is held by the second, and its twin's document arrives.
    """
    certified(world)
    transport, events = start()
    until(lambda: events.connected, "connected")
    first = name_of(world)
    (other,) = {*HUBS} - {first}
    batches = Sender(lambda data, done: transport.publish_batch("events", data, done))
    batches.send(sealed("MQ=="))
    until(batches.again, "held by the first")
    world.double.provisioning.unlinked.add(world.double.hub(first).host)
    if how == "refused":
        world.double.hub(first).registry.delete(DEVICE)
        world.double.cut(DEVICE)
    else:
        world.double.off_net(first)
    until(lambda: events.disconnected, "gone")
    batches.send(sealed("Mg=="))
    until(lambda: world.double.hub(other).sessions.find(DEVICE), "on the other hub")
    until(lambda: events.connected >= 2, "connected")
    until(batches.again, "held")
    world.assign(b"document", other)
    until(lambda: events.desired == [b"document"], "desired")
    assert assigned(world) == world.double.hub(other).host
    assert sealed("Mg==") in world.bodies("ev", other)
    assert set(batches.told) == {1}


def test_a_renewed_certificate_needs_nobody(world, start):
    """The hub knows a provisioned device by its thumbprint; the service is told the new one."""
    certified(world)
    transport, events = start()
    until(lambda: events.connected, "connected")
    world.issue(world.authority)
    transport.renewed()
    until(lambda: events.connected >= 2, "connected with the new one")


def test_a_damaged_memory_is_as_good_as_none(world, start):
    """Half a file, or another scope's: the service is asked."""
    certified(world)
    path = world.folder / "state/iothub.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"v":1,"sco')
    transport, events = start()
    until(lambda: events.connected, "connected")
    transport.stop()
    path.write_text(json.dumps({**json.loads(path.read_text()), "scope": "0ne9", "host": "nobody"}))
    _, again = start()
    until(lambda: again.connected, "connected")
