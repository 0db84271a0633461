"""The fleet manager's transport on a hub of the double: TLS, SAS, REST and Event Hubs, all real."""

from __future__ import annotations

from pathlib import Path

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.eventhub import Times
from edgefleet_cloud.iothub.letters import Letters
from edgefleet_cloud.iothub.limits import tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.registry import Parts as RegistryParts
from edgefleet_cloud.iothub.registry import Registry
from edgefleet_cloud.iothub.rest import HubRest
from edgefleet_cloud.iothub.told import Told
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from edgefleet_cloud.transports.iothub import IotHubTransport, Parts
from edgefleet_provisioning.iothub_double.authority import Authority
from edgefleet_provisioning.iothub_double.service_side import ServiceSide
from edgefleet_provisioning.iothub_double.state import Azure
from edgefleet_shared import topics, twin
from edgefleet_shared.identifiers import sha256_digest

HOST = "fleet.azure-devices.test"
TIMES = Times(balance_s=0.3, lease_s=3.0, file_s=1.0)


class CloudWorld:
    """One hub of the double with two devices, and transports to it one after the other.

    Args:
        folder: For certificates, secrets and the database.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.hub = (azure := Azure()).add(HOST, tier="S3", units=20, partitions=2)
        self._azure = azure
        self._authority = Authority(folder, ["127.0.0.1", HOST])
        self._side = ServiceSide(azure, self._authority.server_file)
        self._side.start()
        self._rest_port = self._side.rest.hub_port(HOST)
        self._events_port = self._side.events.port
        self.database = Database(f"sqlite:///{folder / 'fleet.db'}")
        migrations.upgrade(self.database)
        self._enroll("cam-1", "cam-2")

    def transport(self) -> IotHubTransport:
        """Return a new transport, as a new process would have it."""
        hub = self.configured()
        database, events = self.database, EventLog(EventFeed())
        pacer, rest, letters = Pacer(tier("S3", 20)), HubRest(hub), Letters()
        registry = Registry(
            RegistryParts(hub, rest, pacer, database, events), settled=letters.unpark, retry_s=0.5
        )
        told = Told(hub.name, database, pacer)
        needs = Needs(twins=rest, database=database, told=told, events=events)
        upstream = Upstream(hub, needs, TIMES)
        parts = Parts(hub, rest, pacer, database, registry, upstream)
        return IotHubTransport(parts, letters, backoff_s=(0.05, 0.5))

    def configured(self) -> IotHub:
        """Return the hub as cloud.toml would name it."""
        service, events = self._folder / "service.txt", self._folder / "events.txt"
        service.write_text(self.hub.connection_string("iothubowner"))
        if not events.exists():
            events.write_text(self._side.events_string(self.hub))
        return IotHub(
            name="main",
            host=HOST,
            connection_file=str(service),
            events_file=str(events),
            ca=str(self._authority.ca_file),
            gateway=f"127.0.0.1:{self._rest_port}",
        )

    def device_sends(self, topic: str, payload: bytes) -> None:
        """Have a device say something, as its SDK would."""
        parsed = topics.parse(topic)
        assert parsed
        if parsed.kind == "reported":
            patch = twin.report_patch(payload)
            assert patch
            self.hub.report(parsed.device, "", patch)
        else:
            properties = twin.message_properties(parsed.kind, parsed.rest)
            self.hub.send_event(parsed.device, "", payload, properties)

    def newest(self, topic: str) -> bytes | None:
        """Return what a device finds in its twin."""
        parsed = topics.parse(topic)
        assert parsed
        desired = self.hub.device_twin(parsed.device)["desired"]
        if parsed.kind == "renew":
            return twin.read_renew(desired)
        found = twin.read_document(desired)
        return found.payload if found else None

    def down(self) -> None:
        """End REST and Event Hubs; the hub keeps what it had."""
        self._side.stop()

    def back_up(self) -> None:
        """Serve again, where it was."""
        self._side = ServiceSide(
            self._azure,
            self._authority.server_file,
            hub_ports={HOST: self._rest_port},
            events_port=self._events_port,
        )
        self._side.start()

    def close(self) -> None:
        """End all of it."""
        self._side.stop()
        self.database.close()

    def _enroll(self, *names: str) -> None:
        with self.database.write() as session:
            for name in names:
                self.hub.registry.create(name, auth="certificateAuthority")
                key = sha256_digest(name.encode())
                session.add(
                    DeviceRow(
                        id=name,
                        created="2026-01-31T11:00:00.000Z",
                        hardware="generic-x86_64",
                        state="enrolled",
                        key=key,
                        way="main",
                    )
                )
