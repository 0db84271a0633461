"""Which way a new device is told: the default, or what its ticket says."""

from __future__ import annotations

import base64

import pytest

from edgefleet_cloud.iothub import repository
from tests.cloud.running import RunningCloud
from tests.http_device import csr, new_key

KEY = base64.b64encode(b"k" * 32).decode()


def table(folder, name: str, more: str = "") -> str:
    """Return one hub's table, its secrets in files."""
    host = f"{name}.azure-devices.test"
    online = folder.config.parent
    service = f"HostName={host};SharedAccessKeyName=service;SharedAccessKey={KEY}"
    events = f"Endpoint=sb://127.0.0.1/;SharedAccessKeyName=s;SharedAccessKey=k;EntityPath={name}"
    (online / f"{name}.txt").write_text(service)
    (online / f"{name}-events.txt").write_text(events)
    return (
        f'[[iothub]]\nname = "{name}"\nhost = "{host}"\nconnection_file = "{name}.txt"\n'
        f'events_file = "{name}-events.txt"\n{more}\n'
    )


def start(folder, *tables: str) -> RunningCloud:
    """Start a fleet manager with some hubs, its background asleep."""
    folder.config.write_text(folder.config.read_text() + "\n" + "\n".join(tables))
    return RunningCloud(folder)


@pytest.fixture
def cloud(folder):
    """A fleet manager with a broker and two hubs, one of them behind DPS; none is the default."""
    running = start(folder, table(folder, "main"), table(folder, "two", 'dps_scope = "0ne00AB"'))
    yield running
    running.stop()


def transport(cloud, ticket: dict, key=None) -> dict:
    """Enrol with a ticket; return what the device is told of its transport."""
    body = {"ticket": ticket["ticket"], "csr": csr(key or new_key())}
    answer = cloud.anyone.post("/v1/enrollments", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["transport"]


def ticket(cloud, device: str, **fields) -> dict:
    """Register a device if need be, and make a ticket for it."""
    cloud.client.post("/v1/devices", json={"id": device})
    made = cloud.client.post(f"/v1/devices/{device}/tickets", json=fields)
    assert made.status_code == 201, made.text
    return made.json()


def known(cloud, device: str) -> dict[str, str]:
    """Return at which hubs a device is known, and its status there."""
    with cloud.program.database.read() as session:
        return {
            hub: repository.find(session, device, hub).status
            for hub in repository.hubs_of(session, device)
        }


def test_a_ticket_names_the_hub(cloud):
    """The device is told the hub, is shown at it, and is noted for its registry."""
    told = transport(cloud, ticket(cloud, "cam-1", way="main"))
    assert told == {"kind": "iothub", "url": "iothub://main.azure-devices.test"}
    assert cloud.client.get("/v1/devices/cam-1").json()["way"] == "main"
    assert known(cloud, "cam-1") == {"main": ""}


def test_behind_dps_the_scope_is_told_and_nothing_is_created(cloud):
    """The provisioning service creates the device where it wants it."""
    told = transport(cloud, ticket(cloud, "cam-1", way="two"))
    assert told == {"kind": "iothub", "url": "dps://0ne00AB"}
    assert known(cloud, "cam-1") == {}


def test_without_a_word_it_is_the_broker(cloud):
    """Hubs that are not the default are for those who ask for them."""
    told = transport(cloud, ticket(cloud, "cam-1"))
    assert told["kind"] == "mqtt"
    assert cloud.client.get("/v1/devices/cam-1").json()["way"] == "mqtt"
    assert known(cloud, "cam-1") == {}


def test_a_group_ticket_names_the_hub_for_all(cloud):
    """It is shown with the ticket."""
    made = cloud.client.post(
        "/v1/group-tickets", json={"prefix": "cam", "limit": 2, "way": "main"}
    ).json()
    assert made["way"] == "main"
    for _ in range(2):
        assert transport(cloud, made)["url"] == "iothub://main.azure-devices.test"
    (listed,) = cloud.client.get("/v1/group-tickets").json()["items"]
    assert listed["way"] == "main"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/devices/cam-1/tickets", {}), ("/v1/group-tickets", {"prefix": "cam", "limit": 1})],
)
def test_a_way_that_there_is_not_is_refused(cloud, path, body):
    """When the ticket is made, not when a device stands in the field; the hint names the ways."""
    cloud.client.post("/v1/devices", json={"id": "cam-1"})
    answer = cloud.client.post(path, json={**body, "way": "three"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_way")
    assert "mqtt, main, two" in answer.json()["hint"]


def test_the_answer_to_the_same_key_is_the_same(cloud):
    """A lost answer is given again, with the same way."""
    made, key = ticket(cloud, "cam-1", way="main"), new_key()
    assert transport(cloud, made, key) == transport(cloud, made, key)


def test_enrolling_anew_by_another_way(cloud):
    """A device goes where its newest ticket says; its history stays with its id."""
    transport(cloud, ticket(cloud, "cam-1", way="main"))
    assert transport(cloud, ticket(cloud, "cam-1", way="mqtt"))["kind"] == "mqtt"
    assert cloud.client.get("/v1/devices/cam-1").json()["way"] == "mqtt"


def test_devices_are_listed_by_their_way(cloud):
    """A filter knows the broker's by the name that is shown."""
    transport(cloud, ticket(cloud, "cam-1", way="main"))
    transport(cloud, ticket(cloud, "cam-2"))

    def listed(text: str) -> list[str]:
        answer = cloud.client.get("/v1/devices", params={"filter": text})
        assert answer.status_code == 200, answer.text
        return [device["id"] for device in answer.json()["items"]]

    assert listed('way == "main"') == ["cam-1"]
    assert listed('way == "mqtt"') == ["cam-2"]
    assert listed('way like "m*"') == ["cam-1", "cam-2"]


def test_a_default_hub_is_told_unless_the_ticket_says_mqtt(folder):
    """The fleet is on IoT Hub; a ticket may still ask for the broker."""
    cloud = start(folder, table(folder, "main", "default = true"))
    try:
        assert transport(cloud, ticket(cloud, "cam-1"))["kind"] == "iothub"
        assert transport(cloud, ticket(cloud, "cam-2", way="mqtt"))["kind"] == "mqtt"
    finally:
        cloud.stop()


def test_a_fleet_without_a_broker(folder):
    """It has no broker's address, no revocation lists to give, and enrols devices at its hub."""
    text = folder.config.read_text()
    assert text.count("[broker]\n") == 1
    folder.config.write_text(text.replace("[broker]\n", '[broker]\nkind = "none"\n'))
    cloud = start(folder, table(folder, "main", "default = true"))
    try:
        assert transport(cloud, ticket(cloud, "cam-1"))["kind"] == "iothub"
        assert "broker" not in cloud.facts
        made = cloud.client.post("/v1/devices/cam-1/tickets", json={"way": "mqtt"})
        assert made.json()["code"] == "unknown_way"
        assert cloud.anyone.get("/v1/authority/crl").status_code == 404
    finally:
        cloud.stop()
