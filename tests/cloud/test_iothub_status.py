"""`/v1/iothubs` and `edgefleet iothub`: how the fleet manager stands with its hubs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow, IotHubRow
from edgefleet_cloud.iothub.limits import Usage
from edgefleet_cloud.iothub.partitions import Lag
from edgefleet_cloud.iothub.status import Hubs, View
from tests.cloud.access_world import caller
from tests.fakes.speaking_device import SpeakingDevice
from tests.provisioning.conftest import Cli


class Down:
    """The half that writes, as it stands somewhere in an announcement."""

    connected, sent, pending = True, 1200, 3800

    def usage(self) -> Usage:
        return Usage(50.0, 2610, 3, 0.95, 4.0, 1.0)


class Up:
    """The half that reads, two partitions of it; the second is another server's."""

    connected = True
    lags: Sequence[Lag] = (Lag("0", 12, 1.5, here=True), Lag("1", 0, 0.0, here=False))


@pytest.fixture
def hubs(cloud):
    """Have the fleet manager work with one hub, at which both sides know a device too many."""
    hub = IotHub(name="main", host="fleet.azure-devices.net", events_file="x", units=2)
    down, up = Down(), Up()
    cloud.program.app.state.parts._by_class[Hubs] = Hubs([View(hub, down, up)])
    synced = "2026-11-21T03:22:50.000Z"
    with cloud.program.database.write() as session:
        session.add(SpeakingDevice("cam-1").row(way="main"))
        session.add(SpeakingDevice("cam-2").row(way=""))
        session.add(IotHubRow(name="main", synced=synced, devices=7, repaired=2))
        session.add(IotHubDeviceRow(hub="main", device="stranger", unknown=True))
        session.add(IotHubDeviceRow(hub="main", device="cam-1", missing=True))
    return down, up


def test_without_hubs_the_list_is_empty(cloud):
    """A fleet on MQTT alone has no hubs, and asking for one says so."""
    assert cloud.client.get("/v1/iothubs").json()["items"] == []
    assert cloud.client.get("/v1/iothubs/main").status_code == 404


def test_a_hub_is_shown_whole(cloud, hubs):
    """Limits and their use, what waits, how far events are behind, and what the registry holds."""
    found = cloud.client.get("/v1/iothubs/main").json()
    assert found == {
        "name": "main",
        "host": "fleet.azure-devices.net",
        "tier": "S1",
        "units": 2,
        "default": False,
        "connected": True,
        "listening": True,
        "devices": 1,
        "twin_updates": {
            "limit_per_s": 50.0,
            "last_minute": 2610,
            "used_pct": 87.0,
            "throttled": 3,
        },
        "documents": {"sent": 1200, "pending": 3800},
        "partitions": [
            {"partition": "0", "events": 12, "seconds": 1.5, "here": True},
            {"partition": "1", "events": 0, "seconds": 0.0, "here": False},
        ],
        "registry": {
            "synced": "2026-11-21T03:22:50.000Z",
            "due": False,
            "devices": 7,
            "repaired": 2,
            "unknown": {"count": 1, "first": ["stranger"]},
            "missing": {"count": 1, "first": ["cam-1"]},
        },
    }
    assert cloud.client.get("/v1/iothubs").json()["items"] == [found]


def test_a_part_of_the_fleet_sees_no_names(cloud, hubs):
    """Who may see the devices of one site sees how many are unknown, and not which."""
    client = caller(cloud, "berlin", "viewer", 'labels.site == "berlin"')
    registry = client.get("/v1/iothubs/main").json()["registry"]
    assert registry["unknown"] == {"count": 1, "first": []}


def test_the_command_lists_and_shows(cloud, hubs):
    """The operator's command gives the same, for people and for machines."""
    cli = Cli()
    cli.arguments = ["--server", cloud.url, "--token", cloud.token]
    assert cli.json("iothub", "list") == cloud.client.get("/v1/iothubs").json()["items"]
    listed = cli.run("iothub", "list").stdout
    assert "S1 x 2" in listed
    assert "87.0 %" in listed
    shown = cli.run("iothub", "show", "main").stdout
    assert "1200 sent, 3800 pending" in shown
    assert "12 events, 1.5 s behind" in shown
    assert "1 stranger" in shown


def test_an_announcement_is_watched_to_its_end(cloud, hubs):
    """`show --watch` ends once nothing waits to be told or heard."""
    down, up = hubs
    down.pending, up.lags = 0, ()
    cli = Cli()
    cli.arguments = ["--server", cloud.url, "--token", cloud.token]
    assert cli.json("iothub", "show", "main", "--watch")["documents"]["pending"] == 0
