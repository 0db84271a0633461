"""One IoT Hub's transport over the double's state, with devices as enrolment leaves them."""

from __future__ import annotations

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.letters import Letters
from edgefleet_cloud.iothub.limits import tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.registry import Parts as RegistryParts
from edgefleet_cloud.iothub.registry import Registry
from edgefleet_cloud.iothub.tables import IotHubTwinRow
from edgefleet_cloud.iothub.told import Told
from edgefleet_cloud.transports.iothub import IotHubTransport, Parts
from edgefleet_provisioning.iothub_double.state import Azure
from edgefleet_shared import twin
from edgefleet_shared.identifiers import sha256_digest
from tests.fakes.hub_rest import FakeHubRest, FakeUpward


class HubWorld:
    """A hub, and the fleet manager's transport to it.

    Args:
        database: The fleet manager's.
        name: The hub's.
        pacer: The limits that are kept to; far more than any test needs by default.
        hub: More of the hub's configuration.
    """

    def __init__(
        self, database: Database, name: str = "main", *, pacer: Pacer | None = None, **hub
    ) -> None:
        self.database, self.name = database, name
        self.state = Azure().add(f"{name}.azure-devices.test", tier="S3", units=20)
        self.rest = FakeHubRest(self.state)
        self.config = IotHub(name=name, host=self.state.host, events_file="x", **hub)
        self.pacer = pacer or Pacer(tier("S3", 200))
        self.told = Told(name, database, self.pacer)
        self.upward = FakeUpward()
        self.events = EventLog(EventFeed())
        letters = Letters()
        self.registry = Registry(
            RegistryParts(self.config, self.rest, self.pacer, database, self.events),
            settled=letters.unpark,
            retry_s=0.05,
        )
        parts = Parts(self.config, self.rest, self.pacer, database, self.registry, self.upward)
        self.transport = IotHubTransport(parts, letters, backoff_s=(0.01, 0.05))

    def another(self) -> HubWorld:
        """Return what the next process would have: the same hub and database, nothing else."""
        made = HubWorld(self.database, self.name)
        made.state, made.rest.hub = self.state, self.state
        return made

    def start(self) -> HubWorld:
        """Start the transport with a handler that takes everything."""
        self.transport.start(lambda _topic, _payload: None)
        return self

    def enroll(self, *names: str, state: str = "enrolled", known: bool = True) -> None:
        """Add devices to the fleet, and to the hub's registry if they are known there."""
        with self.database.write() as session:
            for name in names:
                session.add(
                    DeviceRow(
                        id=name,
                        created="2026-01-31T11:00:00.000Z",
                        hardware="generic-x86_64",
                        state=state,
                        key=sha256_digest(name.encode()),
                        way=self.name,
                    )
                )
        for name in names if known else ():
            self.state.registry.create(name, auth="certificateAuthority")

    def set_state(self, device: str, state: str) -> None:
        """Do what revocation, decommission or enrolment does to a device's row."""
        with self.database.write() as session:
            row = session.get(DeviceRow, device)
            assert row
            row.state = state
            session.add(row)

    def row(self, device: str) -> IotHubTwinRow | None:
        """Return what is known of a device at the hub."""
        with self.database.read() as session:
            return repository.find(session, device, self.name)

    def document(self, device: str) -> bytes | None:
        """Return the document in a device's twin, as the device reads it."""
        found = twin.read_document(self.state.device_twin(device)["desired"])
        return found.payload if found else None
