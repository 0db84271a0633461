"""Events over TLS and the registry over REST, with keys and with Entra ID, through the SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.identity import ClientSecretCredential

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.limits import tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.rest import HubRest
from edgefleet_cloud.iothub.sync import Needs as SyncNeeds
from edgefleet_cloud.iothub.sync import RegistrySync
from edgefleet_cloud.iothub.told import Told
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from edgefleet_provisioning.iothub_double.addresses import loopback
from edgefleet_provisioning.iothub_double.authority import Authority
from edgefleet_provisioning.iothub_double.service_side import ServiceSide
from edgefleet_shared import twin
from tests.cloud.iothub_world import HUB, HubWorld
from tests.iothub.upstream_world import TIMES, until

AMQPS = 5671


class TlsWorld:
    """A hub whose events are served where azure-eventhub looks for them: on port 5671, by TLS."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.fleet = HubWorld(database, tier="S3")
        self.folder = folder
        address = loopback((AMQPS,))
        self.authority = Authority(folder, [address, self.fleet.config.host])
        self.side = ServiceSide(
            self.fleet.azure, self.authority.server_file, address, events_tls_port=AMQPS
        )
        self.side.start()
        self.cam = self.fleet.add("cam-1", boot="boot-1")
        self.fleet.forget_events()

    def configured(self, events: str) -> IotHub:
        """Return the hub as cloud.toml would name it."""
        hub = self.fleet.hub
        (self.folder / "service.txt").write_text(hub.connection_string())
        (self.folder / "events.txt").write_text(events)
        return IotHub(
            name=HUB,
            host=hub.host,
            connection_file=str(self.folder / "service.txt"),
            events_file=str(self.folder / "events.txt"),
            ca=str(self.authority.ca_file),
            gateway=self.side.hub_url(hub).removeprefix("https://"),
            tier="S3",
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TlsWorld]:
    """Return a hub that is reached by TLS alone."""
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrations.upgrade(database)
    made = TlsWorld(database, tmp_path)
    yield made
    made.side.stop()
    database.close()


def test_what_no_event_tells_is_in_the_registry(world):
    """A report whose event is gone is found by reading the registry, page after page, over REST."""
    fleet = world.fleet
    fleet.hub.report("cam-1", "", twin.report_patch(world.cam.reported(1)))
    fleet.forget_events()
    for i in range(230):
        fleet.hub.registry.create(f"stranger-{i:03}")
    hub = world.configured(world.side.events_string(fleet.hub, tls=True))
    rest, told = HubRest(hub), Told(HUB, fleet.database, Pacer(tier("S3", 1)))
    upstream = Upstream(hub, Needs(rest, fleet.database, told, fleet.log), TIMES)
    upstream.start(fleet.handle)
    sync = RegistrySync(
        hub, SyncNeeds(rest, upstream, fleet.database, fleet.log, told, fleet.writer)
    )
    assert sync.once()
    assert fleet.row("cam-1").reported_seq == 1
    row = fleet.hub_row()
    assert (row.devices, row.repaired) == (231, 1)
    (said,) = fleet.events("iothub.devices_unknown")
    assert said.data["count"] == 230
    fleet.hub.report("cam-1", "", twin.report_patch(world.cam.reported(2)))
    until(lambda: fleet.row("cam-1").reported_seq == 2, "the report as an event over TLS")
    upstream.stop()
    rest.close()


def test_entra_id_opens_the_events(world, monkeypatch):
    """An endpoint without a key is opened by a token that azure-identity gets from the issuer."""
    issuer, fleet = world.side.issuer, world.fleet
    role = "Azure Event Hubs Data Receiver"
    secret = issuer.register(role, role)

    def credential() -> ClientSecretCredential:
        return ClientSecretCredential(
            issuer.tenant,
            role,
            secret,
            authority=f"https://{world.side.address}:{world.side.rest.port}",
            disable_instance_discovery=True,
            connection_verify=str(world.authority.ca_file),
        )

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", credential)
    full = world.side.events_string(fleet.hub, tls=True)
    parts = [part for part in full.split(";") if not part.startswith("SharedAccess")]
    hub = world.configured(";".join(parts))
    needs = Needs(fleet.registry, fleet.database, fleet.told, fleet.log)
    upstream = Upstream(hub, needs, TIMES)
    upstream.start(fleet.handle)
    fleet.hub.report("cam-1", "", twin.report_patch(world.cam.reported(1)))
    until(lambda: fleet.row("cam-1").reported_seq == 1, "the report")
    upstream.stop()
