"""The device side of the double of IoT Hub, driven by the unmodified azure-iot-device SDK."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, MethodResponse
from azure.iot.device.exceptions import (
    ClientError,
    ConnectionFailedError,
    CredentialError,
    NoConnectionError,
    OperationCancelled,
)

from edgefleet_provisioning.iothub_double.addresses import may_bind
from edgefleet_provisioning.iothub_double.double import AzureDouble


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double with two hubs; one of them is reached through a gateway."""
    folder, hubs = tmp_path_factory.mktemp("azure"), ("fleet-a", "fleet-b.azure-devices.test")
    with AzureDouble(folder, hubs, websockets=may_bind(443)) as made:
        yield made


@pytest.fixture
def clients() -> Iterator[list[Any]]:
    """Collect SDK clients, and shut them down."""
    made: list[Any] = []
    yield made
    for client in made:
        client.shutdown()


def until(seen: Callable[[], Any], seconds: float = 15) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return found


def connect(double: AzureDouble, clients: list[Any], text: str, **more: Any) -> Any:
    """Return a connected client of the SDK for a connection string."""
    kind = IoTHubModuleClient if "ModuleId" in text else IoTHubDeviceClient
    client = kind.create_from_connection_string(
        text, server_verification_cert=double.ca_pem, connection_retry=False,
        auto_connect=False, ensure_desired_properties=False, **more,
    )  # fmt: skip
    clients.append(client)
    client.connect()
    return client


def test_twin_both_ways(double: AzureDouble, clients: list[Any]) -> None:
    """A device reads its twin, reports, and hears of desired changes."""
    hub = double.hub()
    hub.registry.create("twin")
    hub.patch_twin("twin", "", {"properties": {"desired": {"a": 1}}})
    client = connect(double, clients, double.device_string("twin"))
    assert client.get_twin()["desired"] == {"a": 1, "$version": 2}
    heard: list[Any] = []
    client.on_twin_desired_properties_patch_received = heard.append
    client.patch_twin_reported_properties({"b": {"c": "ü"}, "gone": None})
    assert hub.twin("twin")["properties"]["reported"]["b"] == {"c": "ü"}
    hub.patch_twin("twin", "", {"properties": {"desired": {"a": None, "d": "x" * 4000}}})
    assert until(lambda: heard) == [{"a": None, "d": "x" * 4000, "$version": 3}]


def test_a_method_is_answered(double: AzureDouble, clients: list[Any]) -> None:
    """A method reaches the device with its payload, and its answer comes back."""
    double.hub().registry.create("method")
    client = connect(double, clients, double.device_string("method"))

    def answer(request: Any) -> None:
        payload = {"name": request.name, "was": request.payload}
        client.send_method_response(
            MethodResponse.create_from_method_request(request, 201, payload)
        )

    client.on_method_request_received = answer
    asked = double.hub().method("method", "", "do it", b'{"n":1}')
    assert asked.result(15) == (201, b'{"name": "do it", "was": {"n": 1}}')


def test_messages_both_ways(double: AzureDouble, clients: list[Any]) -> None:
    """A message keeps body and properties, in both directions; one sent before waits."""
    hub = double.hub()
    hub.registry.create("d2c")
    hub.send_c2d("d2c", b"early", {"p": "v 1+2"})
    client = connect(double, clients, double.device_string("d2c"))
    message = Message(b"\x00\xff", content_encoding="utf-8", content_type="application/json")
    message.message_id = "m1"
    message.custom_properties["kind"] = "drift report+more&="
    client.send_message(message)
    (event,) = [e for e in hub.log.all() if e.annotations["iothub-connection-device-id"] == "d2c"
                and e.annotations["iothub-message-source"] == "Telemetry"]  # fmt: skip
    assert event.body == b"\x00\xff"
    assert event.properties == {"kind": "drift report+more&="}
    assert event.system == {
        "message_id": "m1", "content_type": "application/json", "content_encoding": "utf-8"
    }  # fmt: skip
    got: list[Any] = []
    client.on_message_received = got.append
    until(lambda: got)
    hub.send_c2d("d2c", b"late")
    until(lambda: len(got) == 2)
    assert [m.data for m in got] == [b"early", b"late"]
    assert got[0].custom_properties == {"p": "v 1+2"}
    until(lambda: not hub.sessions.pending("d2c"))


def test_a_module_has_its_own_twin(double: AzureDouble, clients: list[Any]) -> None:
    """A module connects beside its device and speaks for itself."""
    hub = double.hub()
    hub.registry.create("host")
    hub.registry.create("host", "agent")
    connect(double, clients, double.device_string("host"))
    module = connect(double, clients, double.device_string("host", "agent"))
    module.patch_twin_reported_properties({"m": 1})
    module.send_message("hello")
    assert "m" not in hub.twin("host")["properties"]["reported"]
    assert hub.twin("host", "agent")["properties"]["reported"]["m"] == 1
    assert hub.sessions.connected().count(("host", "")) == 1
    events = [e for e in hub.log.all() if e.body == b"hello"]
    assert events[0].annotations["iothub-connection-module-id"] == "agent"


def test_through_a_gateway_and_websockets(double: AzureDouble, clients: list[Any]) -> None:
    """The hub is chosen by the user name, whatever address was dialled, on either port."""
    hub = double.hub("fleet-b")
    hub.registry.create("gw")
    text = double.device_string("gw", hub="fleet-b")
    assert "GatewayHostName=127." in text
    client = connect(double, clients, text, websockets=double.websockets)
    client.patch_twin_reported_properties({"large": "x" * 4000, "more": "y" * 4000})
    assert hub.twin("gw")["properties"]["reported"]["more"] == "y" * 4000


def test_a_second_connection_kicks_the_first(double: AzureDouble, clients: list[Any]) -> None:
    """The newer connection of one identity ends the older one."""
    double.hub().registry.create("kick")
    first = connect(double, clients, double.device_string("kick"))
    second = connect(double, clients, double.device_string("kick"))
    until(lambda: not first.connected)
    assert second.connected
    second.patch_twin_reported_properties({"who": "second"})


def test_a_disabled_device_is_thrown_out_and_kept_out(
    double: AzureDouble, clients: list[Any]
) -> None:
    """Disabling a device ends its connection; it may not come back until it is enabled."""
    hub = double.hub()
    hub.registry.create("off")
    client = connect(double, clients, double.device_string("off"))
    hub.registry.update("off", status="disabled")
    until(lambda: not client.connected)
    with pytest.raises(CredentialError):
        connect(double, clients, double.device_string("off"))
    hub.registry.update("off", status="enabled")
    connect(double, clients, double.device_string("off"))


def test_a_wrong_key_and_a_stranger_are_refused(double: AzureDouble, clients: list[Any]) -> None:
    """Neither another's key nor an unknown id gets in."""
    hub = double.hub()
    hub.registry.create("right")
    hub.registry.create("wrong")
    text = double.device_string("right").replace("DeviceId=right", "DeviceId=wrong")
    with pytest.raises(CredentialError):
        connect(double, clients, text)
    with pytest.raises(CredentialError):
        connect(double, clients, text.replace("DeviceId=wrong", "DeviceId=nobody"))


def test_a_token_that_expires_ends_the_connection(double: AzureDouble, clients: list[Any]) -> None:
    """When a token's time is over the hub ends the connection, and takes that token no more."""
    double.hub().registry.create("expiry")
    text = double.device_string("expiry")
    client = connect(double, clients, text)
    try:
        double.clock.advance(4000)
        until(lambda: not client.connected)
        with pytest.raises(CredentialError):  # made by a clock that is an hour behind
            connect(double, clients, text)
    finally:
        double.clock.advance(-4000)
    connect(double, clients, text)


def test_429_reaches_the_device(double: AzureDouble, clients: list[Any]) -> None:
    """A report over the limit is answered by 429; the next one after a while is taken."""
    hub = double.hub("fleet-b")
    hub.registry.create("busy")
    client = connect(double, clients, double.device_string("busy", hub="fleet-b"))
    hub.throttles.set("twin_updates", 1, 3600)
    client.patch_twin_reported_properties({"n": 1})
    with pytest.raises(ClientError) as refused:
        client.patch_twin_reported_properties({"n": 2})
    assert "429" in str(refused.value.__cause__)
    assert hub.throttles.counts()["twin_updates"]["throttled"] == 1
    hub.throttles.set("twin_updates", 50)
    client.patch_twin_reported_properties({"n": 3})


def test_off_the_net_and_back(double: AzureDouble, clients: list[Any]) -> None:
    """A hub off the net refuses connections while the other goes on; back, it serves again."""
    double.hub().registry.create("net")
    double.hub("fleet-b").registry.create("net")
    client = connect(double, clients, double.device_string("net"))
    other = connect(double, clients, double.device_string("net", hub="fleet-b"))
    double.off_net("fleet-a")
    try:
        until(lambda: not client.connected)
        with pytest.raises(ConnectionFailedError):
            connect(double, clients, double.device_string("net"))
        assert other.connected
        url = f"{double.service.hub_url(double.hub())}/devices?api-version=2021-04-12"
        with httpx.Client(verify=ssl.create_default_context(cafile=double.ca_file)) as http:
            assert http.get(url).status_code == 503
    finally:
        double.on_net("fleet-a")
    connect(double, clients, double.device_string("net"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_report_is_cut(double: AzureDouble, clients: list[Any], when: Any) -> None:
    """A cut before a report leaves it undone; a cut after leaves it done and unanswered."""
    hub = double.hub()
    device = f"cut-{when}"
    hub.registry.create(device)
    client = connect(double, clients, double.device_string(device))
    client.get_twin()
    done = double.faults.cut_at("in:report", when, device=device)
    with pytest.raises((OperationCancelled, NoConnectionError)):
        client.patch_twin_reported_properties({"n": 1})
    assert done.wait(15)
    assert ("n" in hub.twin(device)["properties"]["reported"]) == (when == "after")
    until(lambda: not client.connected)
    connect(double, clients, double.device_string(device)).patch_twin_reported_properties({"n": 2})
