"""What is done about one word of a hub: the handler gets what devices say, the tables the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow
from edgefleet_cloud.iothub.strangers import Kind, is_ours, mark, row_of, speaks_by, tell
from edgefleet_cloud.iothub.translate import Change, Connection, Lifecycle, Message, Word, report_of
from edgefleet_cloud.ports import EventSink, Handler
from edgefleet_shared import topics
from edgefleet_shared.messages import Presence


class Told(Protocol):
    """Who wants to know, before the handler does, what concerns the hub's twins.

    Each may raise UnavailableError: the event is tried again.
    """

    def seen(self, device: str, sha256: str, module: str = "") -> None:
        """Hear which document a device sees in its twin, or in a module's; '' = it does not say."""
        ...

    def reported(self, device: str) -> None:
        """Hear of a change of reported properties, which counts against the hub's tier."""
        ...

    def read(self) -> None:
        """Wait until the hub's tier lets a twin be read."""
        ...


class Twins(Protocol):
    """Knows whole twins."""

    def twin(self, device: str, module: str = "") -> Mapping[str, Any] | None:
        """Return a twin, or None if there is no such device.

        Raises:
            UnavailableError: Not now.
        """
        ...


class Hearing:
    """Acts on words of one hub, in whatever thread it is called.

    Args:
        hub: Its name in cloud.toml.
        twins: Asked for a report that an event holds only in part.
        database: Where devices are known.
        told: Hears first.
        events: The fleet's log.
        handler: Takes what devices say.
    """

    def __init__(
        self,
        hub: str,
        twins: Twins,
        database: Database,
        told: Told,
        events: EventSink,
        handler: Handler,
    ) -> None:
        self._hub = hub
        self._twins = twins
        self._database = database
        self._told = told
        self._events = events
        self._handler = handler

    def hear(self, word: Word, *, first: bool = True) -> None:
        """Act on a word; on return what it brought is on disk, or refused for good.

        Args:
            word: What the hub said.
            first: Whether this is the first try: what is counted is counted once.

        Raises:
            UnavailableError: Not now.
            Exception: Whatever the handler raises.
        """
        if isinstance(word, Message):
            if word.seen is not None:
                self._told.seen(word.device, word.seen, word.module)
            self._handler(word.topic, word.payload)
        elif isinstance(word, Change):
            if first:
                self._told.reported(word.device)
            self._report(word)
        elif isinstance(word, Connection):
            self._connection(word)
        else:
            self._lifecycle(word)

    def take_report(self, device: str, sealed: bytes) -> None:
        """Hand on a report."""
        self._handler(topics.reported(device), sealed)

    def take_presence(self, device: str, boot: str, *, online: bool) -> None:
        """Hand on what the hub, not the device itself, says of its connection."""
        presence = Presence(1, online, boot)
        self._handler(topics.presence(device), msgspec.json.encode(presence))

    def _report(self, word: Change) -> None:
        report = word.report
        if word.partial:
            self._told.read()
            report = report_of(self._twins.twin(word.device, word.module) or {})
        if report is not None and report.payload is not None:  # else it comes as a message
            self.take_report(word.device, report.payload)

    def _connection(self, word: Connection) -> None:
        """Believe the newest, of a device that speaks by this hub, as of its last known start."""
        with self._database.read() as session:
            device = devices.find(session, word.device)
            known = session.get(IotHubDeviceRow, (self._hub, word.device))
        if device is None or (known is not None and word.order <= known.connection):
            return
        if device.way == self._hub and device.boot and device.online != word.online:
            self.take_presence(device.id, device.boot, online=word.online)
        with self._database.write() as session:
            row = row_of(session, self._hub, word.device)
            row.connection = max(row.connection, word.order)
            session.add(row)

    def _lifecycle(self, word: Lifecycle) -> None:
        device = word.device
        kind: Kind | None
        with self._database.write() as session:
            row = row_of(session, self._hub, device)
            if word.created:
                kind = None if is_ours(session, device) else "unknown"
            else:
                row.connection = ""  # whoever is put there anew is counted anew
                kind = "missing" if speaks_by(session, device, self._hub) else None
            if mark(session, row, kind) and kind:
                tell(session, self._events, self._hub, kind, [device])
