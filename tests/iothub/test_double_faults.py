"""A connection of the double breaks at any packet, before it or after, and never by itself."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest

from edgefleet_provisioning.iothub_double import codec
from edgefleet_provisioning.iothub_double.codec import Kind, Publish
from edgefleet_provisioning.iothub_double.credentials import make_token
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.faults import PACKETS, When
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.sessions import Answer
from tests.iothub.raw import Raw, packet

REGISTERING = tuple(name for name in PACKETS if "register" in name)
EXCHANGES = tuple(name for name in PACKETS if name not in REGISTERING)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double with one hub."""
    with AzureDouble(tmp_path_factory.mktemp("azure"), websockets=False) as made:
        yield made


def message(raw: Raw) -> Publish:
    """Return the next message, passing over acknowledgements."""
    while (found := raw.next()).kind is not Kind.PUBLISH:
        pass
    return codec.read_publish(found)


def course(raw: Raw, device: str) -> list[Future[Answer]]:
    """Exchange one of everything with the hub; return the method that was called.

    Raises:
        EOFError: The connection has ended.
    """
    hub, called = raw.hub, []
    if raw.connect(device, clean=True):
        raise AssertionError("not let in")
    raw.subscribe(
        f"devices/{device}/messages/devicebound/#", "$iothub/methods/POST/#",
        "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#",
    )  # fmt: skip
    raw.publish("$iothub/twin/GET/?$rid=1", b"")
    message(raw)
    raw.publish("$iothub/twin/PATCH/properties/reported/?$rid=2", b'{"n":1}')
    message(raw)
    hub.patch_twin(device, "", {"properties": {"desired": {"n": 1}}})
    assert json.loads(message(raw).payload)["n"] == 1
    called.append(hub.method(device, "", "ping", b"{}"))
    rid = message(raw).topic.partition("$rid=")[2]
    raw.publish(f"$iothub/methods/res/200/?$rid={rid}", b'"pong"')
    raw.publish(f"devices/{device}/messages/events/", b"x")
    hub.send_c2d(device, b"c2d")
    number = message(raw).number
    raw.send(packet(Kind.PUBACK, number.to_bytes(2, "big")))
    raw.send(packet(Kind.PINGREQ, b""))
    while raw.next().kind is not Kind.PINGRESP:
        pass
    raw.publish("$iothub/twin/GET/?$rid=3", b"")
    message(raw)
    return called


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", EXCHANGES)
def test_every_packet_can_be_the_last(double: AzureDouble, name: str, when: When) -> None:
    """Each kind of packet ends the connection where a fault was set, and the next course runs."""
    device = f"{name}-{when}"
    double.hub().registry.create(device)
    done = double.faults.cut_at(name, when, device=device)
    with Raw(double) as raw:
        with pytest.raises((EOFError, OSError, HubError)):  # 404: gone when a method was called
            course(raw, device)
        assert done.wait(15)
        assert raw.closed()
    with Raw(double) as raw:
        (called,) = course(raw, device)
        assert called.result(15) == (200, b'"pong"')


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", REGISTERING)
def test_provisioning_can_break_too(double: AzureDouble, name: str, when: When) -> None:
    """The packets of a registration break in the same way; asked again, it comes to its end."""
    service, device = double.provisioning, f"{name}-{when}".replace(":", "-")
    service.enrolments.put("enrollments", device, {"attestation": {"type": "symmetricKey"}})
    key = service.enrolments.whole("enrollments", device)["attestation"]["symmetricKey"]
    where = f"{service.id_scope}/registrations/{device}"
    token = make_token(where, key["primaryKey"], int(double.clock.now()) + 600, "registration")
    user = f"{where}/api-version=2019-03-31&ClientVersion=x"

    def register() -> str:
        with Raw(double) as raw:
            assert raw.connect(device, user=user, password=token) == 0
            raw.subscribe("$dps/registrations/res/#")
            body = json.dumps({"registrationId": device}).encode()
            raw.publish("$dps/registrations/PUT/iotdps-register/?$rid=1", body)
            operation = json.loads(message(raw).payload)["operationId"]
            topic = "$dps/registrations/GET/iotdps-get-operationstatus/"
            raw.publish(f"{topic}?$rid=2&operationId={operation}", b"")
            said = json.loads(message(raw).payload)
            raw.publish(f"{topic}?$rid=3&operationId={operation}", b"")
            message(raw)
            return str(said["registrationState"]["assignedHub"])

    done = double.faults.cut_at(name, when, device=device)
    with pytest.raises((EOFError, OSError)):
        register()
    assert done.wait(15)
    assert register() == double.hub().host
    assert double.hub().registry.get(device)


def test_a_cut_now(double: AzureDouble) -> None:
    """One device's connection, or all of them, end at once."""
    for name in ("cut-1", "cut-2", "cut-3"):
        double.hub().registry.create(name)
    with Raw(double) as first, Raw(double) as second, Raw(double) as third:
        for raw, name in ((first, "cut-1"), (second, "cut-2"), (third, "cut-3")):
            raw.connect(name)
        assert double.cut("cut-2") == 1
        assert second.closed()
        first.send(packet(Kind.PINGREQ, b""))
        assert first.next().kind is Kind.PINGRESP
        assert double.cut(hub=double.hub().host) == 2
        assert first.closed()
        assert third.closed()
        with suppress(OSError):
            first.send(packet(Kind.PINGREQ, b""))


def test_a_port_that_is_taken_leaves_nothing_running(tmp_path: Path) -> None:
    """A double that cannot have its port says so, and its threads are gone."""
    before = {t.ident for t in threading.enumerate()}
    broken = AzureDouble(tmp_path, websockets=False)
    with socket.create_server((broken.address(), 8883)), pytest.raises(OSError, match="in use"):
        broken.start()
    assert {t.ident for t in threading.enumerate() if t.name.startswith("azure-")} <= before


def test_a_hub_that_refuses_for_a_while(double: AzureDouble) -> None:
    """A hub that refuses is unavailable to whoever comes, and leaves who is there."""
    double.hub().registry.create("waits")
    double.hub().registry.create("stays")
    with Raw(double) as there:
        there.connect("stays")
        double.refuse()
        with Raw(double) as raw:
            assert raw.connect("waits") == 3
        there.send(packet(Kind.PINGREQ, b""))
        assert there.next().kind is Kind.PINGRESP
    double.refuse(refusing=False)
    with Raw(double) as raw:
        assert raw.connect("waits") == 0
