"""IoT Edge's workload API, virtual devices and the asynchronous client, on the double."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import IoTHubModuleClient
from azure.iot.device.aio import IoTHubDeviceClient as AsyncClient

from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.virtual import Crowd, VirtualDevice
from edgefleet_provisioning.iothub_double.workload import Workload


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double whose hub is reached through a gateway alone."""
    folder = tmp_path_factory.mktemp("azure")
    with AzureDouble(folder, ("edge.azure-devices.test",), websockets=False) as made:
        yield made


def test_a_module_of_the_edge_holds_no_key(
    double: AzureDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module takes everything from its environment, and its token from the workload API."""
    hub = double.hub()
    hub.registry.create("edge-1", edge=True)
    hub.registry.create("edge-1", "agent", managed_by="iotEdge")
    socket = tmp_path / "workload.sock"
    with Workload(hub, "edge-1", socket, double.address(), double.ca_pem) as workload:
        for name, value in workload.environment("agent").items():
            monkeypatch.setenv(name, value)
        client = IoTHubModuleClient.create_from_edge_environment(
            connection_retry=False, auto_connect=False, ensure_desired_properties=False
        )
        try:
            client.connect()
            client.patch_twin_reported_properties({"n": 1})
        finally:
            client.shutdown()
        assert hub.twin("edge-1", "agent")["properties"]["reported"]["n"] == 1
        monkeypatch.setenv("IOTEDGE_MODULEGENERATIONID", "1")
        with pytest.raises(ValueError, match="SasToken"):
            IoTHubModuleClient.create_from_edge_environment()


def test_the_asynchronous_client(double: AzureDouble) -> None:
    """The asynchronous client does what the other one does: twin, message, method."""
    double.hub().registry.create("aio")
    text = double.device_string("aio")

    async def course() -> None:
        client = AsyncClient.create_from_connection_string(
            text, server_verification_cert=double.ca_pem, connection_retry=False
        )
        try:
            await client.connect()
            await client.get_twin()
            await client.patch_twin_reported_properties({"n": 2})
            await client.send_message("from aio")
        finally:
            await client.shutdown()

    asyncio.run(course())
    assert double.hub().twin("aio")["properties"]["reported"]["n"] == 2
    assert [e for e in double.hub().log.all() if e.body == b"from aio"]


def test_a_crowd_needs_no_sockets(double: AzureDouble) -> None:
    """Two thousand devices hear of their desired properties and report, in one thread."""
    hub = double.azure.add("crowd.azure-devices.test", tier="S3")
    crowd = Crowd(hub)

    def heard(device: VirtualDevice, patch: dict[str, Any]) -> None:
        device.report({"seen": patch["$version"]})

    try:
        for i in range(2000):
            hub.registry.create(f"v{i}")
            crowd.join(f"v{i}", heard, lambda d, name, said: (200, [d.device, name, said]))
        hub.throttles.set("twin_updates", 1500, 3600)
        for i in range(2000):
            hub.patch_twin(f"v{i}", "", {"properties": {"desired": {"a": i}}})
        crowd.settle()
        seen = sum("seen" in hub.twin(f"v{i}")["properties"]["reported"] for i in range(2000))
        counts = hub.throttles.counts()["twin_updates"]
        assert seen == counts["calls"]
        assert 1500 <= seen < 2000
        assert {type(e) for e in crowd.failures} == {HubError}
        assert len(crowd.failures) == counts["throttled"]
        answer = hub.method("v7", "", "ping", b"1").result(15)
        assert json.loads(answer.payload) == ["v7", "ping", 1]
        assert len(hub.sessions.connected()) == 2000
    finally:
        crowd.close()


def test_a_callback_that_waits_delays_no_writer(double: AzureDouble) -> None:
    """The service's writes do not wait for what a virtual device does with them."""
    hub = double.hub()
    hub.registry.create("slow")
    written, waited = threading.Event(), list[bool]()
    crowd = Crowd(hub)
    try:
        crowd.join("slow", lambda *_: waited.append(written.wait(10)))
        for i in range(5):
            hub.patch_twin("slow", "", {"properties": {"desired": {"a": i}}})
    finally:
        written.set()
        crowd.close()
    assert waited == [True] * 5
