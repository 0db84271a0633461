"""A hub of the double beside a fleet manager's database; its service API and events in process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import translate
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow, IotHubRow
from edgefleet_cloud.iothub.hearing import Hearing
from edgefleet_cloud.iothub.translate import Event
from edgefleet_cloud.paging import PageQuery
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.uplink import Uplink
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.state import Azure
from edgefleet_shared.errors import UnavailableError
from tests.fakes.speaking_device import SpeakingDevice

HUB = "main"


class Told:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.refuse = False

    def _note(self, *what: str) -> None:
        if self.refuse:
            raise UnavailableError("not now")
        self.heard.append(what)

    def seen(self, device: str, sha256: str, module: str = "") -> None:
        self._note("seen", device, sha256)

    def reported(self, device: str) -> None:
        self._note("reported", device)

    def read(self) -> None:
        self._note("read")

    def query(self) -> None:
        self._note("query")


class Registry:
    """The service API over the double's state, without the network between."""

    def __init__(self, world: HubWorld, page_size: int = 2) -> None:
        self._world = world
        self._size = page_size
        self.pages = 0
        self.before_page: Callable[[int], None] = lambda _number: None

    def page(
        self, sql: str, following: str = "", page_size: int = 0
    ) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return two rows of a query over devices, or over modules of one name."""
        self.pages += 1
        self.before_page(self.pages)
        registry = self._world.hub.registry
        ids = [(each.device, each.module) for each in registry.all()]
        if "devices.modules" in sql:
            ids = [
                (each.device, each.module) for device, _ in ids for each in registry.modules(device)
            ]
        found = [self._world.hub.twin(device, module) for device, module in ids]
        at = int(following or 0)
        rest = at + self._size
        return found[at:rest], str(rest) if rest < len(found) else ""

    def device(self, device: str) -> Mapping[str, Any] | None:
        """Return an identity, or None."""
        try:
            return self._world.hub.registry.get(device).document()
        except HubError:
            return None

    def twin(self, device: str, module: str = "") -> Mapping[str, Any] | None:
        """Return a twin, or None."""
        try:
            return self._world.hub.twin(device, module)
        except HubError:
            return None


class Writer:
    """Writes down what is wrong in the registry."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def correct(self, device: str, there: str) -> None:
        """Note a status."""
        self.told[device] = there

    def missing(self, device: str) -> None:
        """Note an absence."""
        self.told[device] = "missing"


class Between:
    """Stands for `Upstream` where only its handler's thread is needed."""

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing

    def between(self, call: Callable[[Hearing], Any]) -> Future[Any]:
        """Do it at once."""
        future: Future[Any] = Future()
        try:
            future.set_result(call(self._hearing))
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            future.set_exception(error)
        return future


class HubWorld:
    """One hub, one database, and what the fleet manager does with what the hub says."""

    def __init__(self, database: Database, *, tier: str = "S1") -> None:
        self.database = database
        self.now = datetime(2026, 2, 1, tzinfo=UTC)
        self.config = IotHub(name=HUB, host="fleet-a.azure-devices.test", events_file="none")
        self.azure = Azure()
        self.hub = self.azure.add(self.config.host, tier)
        self.hub.notices.routes.add("deviceLifecycleEvents")
        self.log = EventLog(EventFeed(), clock=self.clock)
        self.ingest = Ingest(database, self.log, clock=self.clock)
        self.told = Told()
        self.writer = Writer()
        self.registry = Registry(self)
        self.handled: list[str] = []
        self.hearing = Hearing(HUB, self.registry, database, self.told, self.log, self.handle)
        self._read = -1
        self._lock = threading.Lock()

    def clock(self) -> datetime:
        """Tell the time of this world."""
        return self.now

    def handle(self, topic: str, payload: bytes) -> None:
        """Take a message as `Uplink` does, but for questions."""
        self.handled.append(topic)
        if not topic.endswith("/up/get"):
            Uplink(None, self.ingest, None, self.database, None).handle(topic, payload)  # type: ignore[arg-type]

    def add(self, name: str, *, there: bool = True, **fields: Any) -> SpeakingDevice:
        """Add a device of the fleet, and to the hub's registry unless it is not `there`."""
        device = SpeakingDevice(name)
        with self.database.write() as session:
            session.add(device.row(**{"way": HUB, **fields}))
        if there:
            self.hub.registry.create(name)
        return device

    def hear(self) -> None:
        """Act on every event since the last time, partition by partition."""
        for event in sorted(self.hub.log.all(), key=lambda each: each.enqueued):
            word = translate.read(Event(event.annotations, event.properties, event.body))
            if word is not None:
                self.hearing.hear(word)
        self.forget_events()

    def hear_report(self, device: str) -> None:
        """Have heard a report of a device some time ago."""
        with self.database.write() as session:
            row = devices.find(session, device)
            row.reported_at = "2026-01-31T12:00:00.000Z"
            session.add(row)

    def forget_events(self) -> None:
        """Lose every event that is in the hub's log, as its retention does."""
        for kept in self.hub.log._kept:
            kept.clear()

    def row(self, device: str) -> Any:
        """Return a device's row."""
        with self.database.read() as session:
            return devices.find(session, device)

    def at_hub(self, device: str) -> IotHubDeviceRow | None:
        """Return what is known of a device at the hub."""
        with self.database.read() as session:
            return session.get(IotHubDeviceRow, (HUB, device))

    def hub_row(self) -> IotHubRow | None:
        """Return the hub's own row."""
        with self.database.read() as session:
            return session.get(IotHubRow, HUB)

    def events(self, kind: str) -> list[Any]:
        """Return the events of a type in the fleet's log."""
        with self.database.read() as session:
            return list(self.log.page(session, PageQuery(500, filter=f'type == "{kind}"'))[0])
