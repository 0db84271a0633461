"""A whole fleet manager on an IoT Hub of the double: enrolment, reports, revocation, the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.iothub.tables import IotHubTwinRow
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.virtual import Crowd, VirtualDevice
from edgefleet_shared import topics
from tests.brokers import until
from tests.cloud.running import RunningCloud
from tests.fakes.speaking_device import SpeakingDevice
from tests.fleet_folder import FleetFolder
from tests.http_device import HttpDevice
from tests.iothub.cloud_world import CloudWorld


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudWorld]:
    """A double with one hub."""
    made = CloudWorld(tmp_path_factory.mktemp("double"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, hub: CloudWorld) -> Iterator[RunningCloud]:
    """A fleet manager without a broker, all of whose devices are on the hub."""
    folder = FleetFolder(tmp_path_factory.mktemp("fleet") / "fleet")
    found = hub.configured()
    keys = ("name", "host", "connection_file", "events_file", "ca", "gateway")
    lines = [f'{key} = "{getattr(found, key)}"' for key in keys]
    table = "\n".join(["", "[[iothub]]", *lines, 'tier = "S3"', "default = true", ""])
    text = folder.config.read_text().replace("[broker]\n", '[broker]\nkind = "none"\n')
    folder.config.write_text(text + table)
    running = RunningCloud(folder, background=True)
    yield running
    running.stop()


def status(hub: CloudWorld, device: str) -> str:
    """Return what the hub's registry says of a device."""
    try:
        return hub.hub.registry.get(device).status
    except HubError:
        return "absent"


def speaker(device: HttpDevice) -> SpeakingDevice:
    """Return what signs by the key of a device that has enrolled."""
    made = SpeakingDevice(device.name)
    made.signer = CryptoSigner(device.key)
    return made


def enrolled(cloud: RunningCloud, name: str) -> HttpDevice:
    """Register and enrol a device."""
    device = HttpDevice(cloud, name)
    device.register()
    answer = device.enroll()
    assert answer.status_code == 201, answer.text
    assert answer.json()["transport"]["kind"] == "iothub"
    return device


def test_the_fleet_runs_without_a_broker(cloud: RunningCloud) -> None:
    """There is none in the ready file, and the API answers."""
    assert "broker" not in cloud.facts
    assert cloud.client.get("/v1/devices").status_code == 200


def test_a_device_enrols_reports_and_is_online(cloud: RunningCloud, hub: CloudWorld) -> None:
    """The hub knows it without anybody's doing; what it says in its twin is its state."""
    device = enrolled(cloud, "new-1")
    until(lambda: status(hub, "new-1") == "enabled", 20)
    assert hub.hub.registry.get("new-1").auth == "certificateAuthority"
    said = speaker(device)
    hub.device_sends(topics.presence("new-1"), said.presence())
    hub.device_sends(topics.reported("new-1"), said.reported(1))
    until(lambda: device.row()["online"], 20)
    until(lambda: cloud.client.get("/v1/devices/new-1/state").json()["reported"], 20)
    assert device.row()["way"] == "main"


def test_revoked_shut_out_readmitted_and_gone(cloud: RunningCloud, hub: CloudWorld) -> None:
    """The registry follows, step by step."""
    device = enrolled(cloud, "life-1")
    until(lambda: status(hub, "life-1") == "enabled", 20)
    assert cloud.client.post("/v1/devices/life-1/revoke").status_code == 200
    until(lambda: status(hub, "life-1") == "disabled", 20)
    again = HttpDevice(cloud, "life-1")
    assert again.enroll().status_code == 201
    until(lambda: status(hub, "life-1") == "enabled", 20)
    assert device.row()["state"] == "enrolled"
    assert cloud.client.delete("/v1/devices/life-1").status_code in {200, 204}
    until(lambda: status(hub, "life-1") == "absent", 20)
    wanted = {"device.hub_enabled", "device.hub_disabled", "device.hub_absent"}
    until(lambda: wanted <= told(cloud, "life-1"), 20)


def test_a_device_from_another_way_is_admitted(cloud: RunningCloud, hub: CloudWorld) -> None:
    """The hub's registry gets to know it when an operator says so; nobody else is let in."""
    enrolled(cloud, "moves-1")
    until(lambda: "device.hub_enabled" in told(cloud, "moves-1"), 20)
    with cloud.program.database.write() as session:  # as if it had enrolled on MQTT
        session.delete(session.get(IotHubTwinRow, ("moves-1", "main")))
    hub.hub.registry.delete("moves-1")
    answer = cloud.client.put("/v1/iothubs/main/devices/moves-1")
    assert answer.status_code == 202, answer.text
    assert answer.json() == {
        "hub": "main", "device": "moves-1", "url": f"iothub://{hub.configured().host}"
    }  # fmt: skip
    until(lambda: status(hub, "moves-1") == "enabled", 20)
    assert "device.admitted" in told(cloud, "moves-1")
    assert cloud.client.put("/v1/iothubs/nowhere/devices/moves-1").status_code == 404
    HttpDevice(cloud, "never-1").register()
    refused = cloud.client.put("/v1/iothubs/main/devices/never-1")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_admitted")
    assert status(hub, "never-1") == "absent"


def test_a_device_that_is_there_answers_and_another_does_not(
    cloud: RunningCloud, hub: CloudWorld
) -> None:
    """A direct method reaches who is connected; who is not is told apart from who is unknown."""
    enrolled(cloud, "ping-1")
    until(lambda: status(hub, "ping-1") == "enabled", 20)
    path = "/v1/iothubs/main/devices/ping-1/ping"
    absent = cloud.client.post(path)
    assert (absent.status_code, absent.json()["code"]) == (409, "not_connected")
    crowd, asked = Crowd(hub.hub), []

    def method(_device: VirtualDevice, name: str, payload: object) -> tuple[int, object]:
        asked.append((name, payload))
        return 200, {"boot": "boot-1", "agent": "9"}

    crowd.join("ping-1", lambda *_: None, method)
    answer = cloud.client.post(path)
    assert answer.status_code == 200, answer.text
    assert {**answer.json(), "ms": 0} == {
        "hub": "main", "device": "ping-1", "agent": "9", "boot": "boot-1", "ms": 0
    }  # fmt: skip
    assert asked == [("ping", {})]
    assert cloud.client.post("/v1/iothubs/main/devices/nobody/ping").status_code == 404
    assert cloud.client.post("/v1/iothubs/nowhere/devices/ping-1/ping").status_code == 404
    crowd.close()


def told(cloud: RunningCloud, device: str) -> set[str]:
    """Return what kinds of events there are about a device."""
    only = {"filter": f'subject == "devices/{device}"'}
    events = cloud.client.get("/v1/events", params=only).json()
    return {event["type"] for event in events["items"]}
