"""Which ways to devices there are, and on which one a message has come.

Which way a device is on follows the device: the newest report decides, for its number is signed
and grows with every connection. So a message that a broker has kept, or an event that is old, moves
nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from sqlmodel import Session

from edgefleet_cloud.database import Database, after_commit
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.hub_config import MQTT, IotHub
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.tables import ENABLED, UNKNOWN
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Reported
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

BROKER = ""
"""The way of devices on MQTT, as the database has it."""

_here: ContextVar[str | None] = ContextVar("way", default=None)


@contextmanager
def heard_on(way: str) -> Iterator[None]:
    """Say that what is handled within has come on this way."""
    token = _here.set(way)
    try:
        yield
    finally:
        _here.reset(token)


def here() -> str | None:
    """Return on which way the message that is being handled has come; None if none is."""
    return _here.get()


class Address(NamedTuple):
    """What a device is told about its transport when it enrols."""

    kind: str
    url: str


class Welcome(NamedTuple):
    """A hub that is to know a device, and what its registry was known to say; None: nothing."""

    hub: IotHub
    before: str | None


class Ways:
    """The ways of a fleet: an MQTT broker, Azure IoT Hubs, or both.

    Args:
        hubs: The hubs.
        broker: Returns the URL that devices on MQTT are told; None = there is no broker.
    """

    def __init__(
        self, hubs: Sequence[IotHub] = (), broker: Callable[[], str] | None = lambda: ""
    ) -> None:
        self._hubs = {hub.name: hub for hub in hubs}
        self._broker = broker
        self.admitted: Callable[[str, str], None] = lambda _hub, _device: None

    @property
    def default(self) -> str:
        """Return the way of new devices about which nobody has said anything."""
        return next((name for name, hub in self._hubs.items() if hub.default), BROKER)

    def check(self, asked: str) -> str:
        """Return `asked` if it names a way, or is '' for the default.

        Raises:
            InvalidInputError: It names none (code `unknown_way`).
        """
        if asked and asked not in self._names():
            raise InvalidInputError(
                f"There is no way {asked[:80]!r} to a device.",
                code="unknown_way",
                hint=f"There is: {', '.join(self._names())}. [[iothub]] in cloud.toml adds hubs.",
            )
        return asked

    def chosen(self, asked: str) -> str:
        """Return the way that was asked for, as the database has it; the default if it is gone."""
        if not asked or asked not in self._names():
            return self.default
        return BROKER if asked == MQTT else asked

    def told(self, way: str) -> Address:
        """Return what a device on a way is told."""
        hub = self._hubs.get(way)
        if hub is not None:
            return Address("iothub", hub.address)
        return Address("mqtt", self._broker() if self._broker else "")

    def admit(self, session: Session, row: DeviceRow, asked: str, now: str) -> None:
        """Put a device that enrols on its way; its hub's registry is told after the commit."""
        row.way = self.chosen(asked)
        session.add(row)
        hub = self._hubs.get(row.way)
        if hub is None:
            return
        session.flush()  # the device itself, before a row that names it
        known = repository.find(session, row.id, hub.name)
        if known is None and not hub.dps_scope:
            repository.change(session, row.id, hub.name, now, status=UNKNOWN)
        after_commit(session, lambda: self.admitted(hub.name, row.id))

    def welcome(self, session: Session, row: DeviceRow, name: str, now: str) -> Welcome:
        """Have a hub's registry know an enrolled device that is on another way.

        One that is known there is looked at again: somebody may have removed it.

        Raises:
            NotFoundError: There is no such hub.
            ConflictError: The device is not enrolled, or a DPS makes that hub's devices
                (`not_admitted`).
        """
        hub = self._hubs.get(name)
        if hub is None:
            raise NotFoundError(
                f"There is no IoT Hub {name[:80]!r}.", hint="GET /v1/iothubs lists them."
            )
        if hub.dps_scope:
            raise ConflictError(
                f"The Device Provisioning Service makes the devices of {name}.",
                code="not_admitted",
                hint="Let the device come by dps://; it needs nothing else.",
            )
        if row.state != ENROLLED:
            raise ConflictError(
                f"{row.id} is {row.state}, so no hub may know it.",
                code="not_admitted",
                hint="Enrol it first, with a ticket whose way is the hub.",
            )
        known = repository.find(session, row.id, hub.name)
        before = known.status if known else None
        repository.change(session, row.id, hub.name, now, status=UNKNOWN)
        after_commit(session, lambda: self.admitted(hub.name, row.id))
        return Welcome(hub, before)

    def way_of(self, database: Database, device: str) -> str:
        """Return where a device is reached; the default if its hub is configured no more."""
        with database.read() as session:
            row = devices.find(session, device)
        way = row.way if row else self.default
        known = way in self._hubs or (way == BROKER and self._broker is not None)
        return way if known else self.default

    def is_hub(self, way: str) -> bool:
        """Return whether a way is a hub's."""
        return way in self._hubs

    def _names(self) -> list[str]:
        return [*([MQTT] if self._broker else []), *self._hubs]


class Moves:
    """Notes on which way each device is: a listener of `reports.ingest.Ingest`.

    Args:
        ways: The ways.
        events: Told of devices that move.
        moved: Called in the transaction, to say on the new way what was said on the old.
        clock: Dates what is noted.
    """

    def __init__(
        self,
        ways: Ways,
        events: EventSink,
        moved: Callable[[Session, str], None],
        clock: Clock = system_clock,
    ) -> None:
        self._ways, self._events, self._moved, self._clock = ways, events, moved, clock

    def heard(self, session: Session, device: str, _reported: Reported) -> None:
        """Take a newer report: where it came from is where its device is."""
        way, row = here(), devices.find(session, device)
        if way is None or row is None:
            return
        if self._ways.is_hub(way):
            self._note_known(session, device, way)
        if row.way == way:
            return
        before, row.way = row.way, way
        session.add(row)
        self._events.record(
            session,
            type="device.moved",
            step=Step.REPORT,
            subject=f"devices/{device}",
            message=f"{device} is reached by {way or MQTT} now, no longer by {before or MQTT}.",
            actor=f"devices/{device}",
            before={"way": before or MQTT},
            after={"way": way or MQTT},
        )
        self._moved(session, device)

    def _note_known(self, session: Session, device: str, hub: str) -> None:
        """Who speaks at a hub is in its registry, and is shut out there once it is revoked."""
        known = repository.find(session, device, hub)
        if known is None or known.status != ENABLED:
            now = format_time(self._clock())
            repository.change(session, device, hub, now, status=ENABLED)
