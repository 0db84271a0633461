"""Takes every message that devices send; what it believes is on disk before it returns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec
from securesystemslib.signer import Key
from sqlmodel import Session

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.devices.keys import heard, key_of_row, previous_key_of_row
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_cloud.refusals import Refusals
from edgefleet_cloud.reports.items import Items
from edgefleet_cloud.reports.opening import open_batch, open_presence, open_reported
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError
from edgefleet_shared.messages import Batch, Presence, Reported
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

Listener = Callable[[Session, str, Reported], None]
"""Called with each newer Reported of a device, in the transaction that stores it."""

Message = Presence | Reported | Batch

OVERTAKEN = timedelta(minutes=1)
"""A state may come this late behind a newer one: several servers may share one queue."""

_log = logging.getLogger(__name__)


class Ingest:
    """Stores reports.

    Args:
        database: Written to, one transaction a message.
        events: Told of refusals, of presence, and of what devices tell.
        listeners: Rooms that act on a device's state.
        clock: Tells the time.
        refusals: Limits the events about refused messages.
    """

    def __init__(
        self,
        database: Database,
        events: EventSink,
        listeners: Sequence[Listener] = (),
        clock: Clock = system_clock,
        refusals: Refusals | None = None,
    ) -> None:
        self._database = database
        self._events = events
        self._listeners = tuple(listeners)
        self._clock = clock
        self._items = Items(events)
        self._refusals = refusals or Refusals()
        self._lock = threading.Lock()

    def handle(self, device_id: str, kind: str, rest: str, payload: bytes) -> None:
        """Store one message, or refuse it with an event `report.refused`; both end it.

        Args:
            device_id: The topic's device.
            kind: The topic's kind: `presence`, `reported` or `ev`.
            rest: The topic's rest: the stream of an `ev`.
            payload: What came, from whomever.

        Raises:
            UnavailableError: The database does not take it now; the message must come again.
        """
        try:
            # A renewal may be committed between the two looks at the device: what its old key has
            # signed counts all the same, and is judged once more.
            while not self._take(device_id, kind, rest, payload):
                pass
        except (InvalidInputError, TrustError) as error:
            self._refuse(device_id, "/".join(filter(None, (kind, rest))), error)

    def _take(self, device_id: str, kind: str, rest: str, payload: bytes) -> bool:
        """Store a message; return whether the device still had the key that it was judged by."""
        opened = self._open(device_id, kind, rest, payload)
        with self._database.write() as session:
            row = devices.find(session, device_id)
            if row is None or row.state != ENROLLED or row.key != opened.key:
                return False
            if opened.proves_key:
                heard(session, row, self._clock())
            self._store(session, row, opened.message)
            return True

    def _open(self, device_id: str, kind: str, rest: str, payload: bytes) -> _Opened:
        with self._database.read() as session:
            row = devices.find(session, device_id)
        key = key_of_row(row)
        if row is None or key is None:
            raise TrustError("No such device is enrolled.", code="unknown_device")
        if kind == "presence" and not rest:
            return _Opened(row.key, open_presence(payload), proves_key=False)
        if not (kind == "ev" or (kind == "reported" and not rest)):
            raise InvalidInputError("Nothing is sent on this topic.", code="unknown_topic")
        try:
            return _Opened(row.key, _signed(kind, payload, key, device_id, rest), proves_key=True)
        except TrustError as error:
            previous = previous_key_of_row(row, self._clock())
            if error.code != "signature" or previous is None:
                raise
            message = _signed(kind, payload, previous, device_id, rest)
            return _Opened(row.key, message, proves_key=False)

    def _store(self, session: Session, row: DeviceRow, message: Message) -> None:
        if isinstance(message, Presence):
            self._store_presence(session, row, message)
        elif isinstance(message, Reported):
            self._store_reported(session, row, message)
        else:
            self._store_batch(session, row, message)

    def _store_presence(self, session: Session, row: DeviceRow, presence: Presence) -> None:
        """Believe a presence for what it is worth: a will of an earlier start is stale."""
        stale = not presence.online and row.boot not in {"", presence.boot}
        if stale or (row.online, row.boot) == (presence.online, presence.boot):
            return
        came, row.online = row.online != presence.online, presence.online
        row.boot = presence.boot
        row.last_seen = format_time(self._clock())
        session.add(row)
        if came:
            word = "online" if presence.online else "offline"
            self._events.record(
                session,
                type=f"device.{word}",
                step=Step.REPORT,
                subject=f"devices/{row.id}",
                message=f"{row.id} is {word}.",
                actor=f"devices/{row.id}",
                data={"boot": presence.boot, "agent": presence.agent},
                before={"online": not presence.online},
                after={"online": presence.online},
            )

    def _store_reported(self, session: Session, row: DeviceRow, reported: Reported) -> None:
        if reported.seq <= row.reported_seq:
            self._look_at_replay(session, row, reported)
            return
        now = format_time(self._clock())
        row.reported = msgspec.to_builtins(reported)
        row.reported_seq, row.reported_at, row.last_seen = reported.seq, now, now
        row.agent = reported.agent
        session.add(row)
        session.flush()
        for listener in self._listeners:
            listener(session, row.id, reported)

    def _look_at_replay(self, session: Session, row: DeviceRow, reported: Reported) -> None:
        """Tell of an older state; not of the newest again, nor of two that overtook each other."""
        came = parse_time(row.reported_at) if row.reported_at else None
        if reported.seq == row.reported_seq or came is None or self._clock() - came < OVERTAKEN:
            return
        error = TrustError(
            f"State {reported.seq} came again; {row.reported_seq} was known.", code="replayed"
        )
        untold = self._admit(row.id, error)
        if untold is not None:
            self._tell_refusal(session, row.id, "reported", error, untold)

    def _store_batch(self, session: Session, row: DeviceRow, batch: Batch) -> None:
        now = format_time(self._clock())
        row.last_seen = now
        session.add(row)
        refused = self._items.store(session, row, batch, now)
        if refused:
            why = f"{len(refused)} items cannot be used. {refused[0]}"
            error = InvalidInputError(why, code="malformed_items")
            untold = self._admit(row.id, error)
            if untold is not None:
                self._tell_refusal(session, row.id, f"ev/{batch.stream}", error, untold)

    def _refuse(self, device_id: str, what: str, error: EdgeFleetError) -> None:
        untold = self._admit(device_id, error)
        if untold is None:
            return
        _log.warning("%s from %s is refused: %s", what[:80], device_id[:80], error)
        with self._database.write() as session:
            self._tell_refusal(session, device_id, what, error, untold)

    def _admit(self, device_id: str, error: EdgeFleetError) -> int | None:
        with self._lock:
            return self._refusals.admit(device_id, error.code)

    def _tell_refusal(
        self, session: Session, device_id: str, what: str, error: EdgeFleetError, untold: int
    ) -> None:
        self._events.record(
            session,
            type="report.refused",
            step=Step.REPORT,
            subject=f"devices/{device_id[:80]}",
            message=f"A message of {device_id[:80]} was refused: {error.message}",
            data={"code": error.code, "message": what[:80], "untold_before": untold},
        )


class _Opened(NamedTuple):
    """A message, the digest of the device's key when it came, and whether that key signed it."""

    key: str
    message: Message
    proves_key: bool


def _signed(kind: str, payload: bytes, key: Key, device_id: str, rest: str) -> Reported | Batch:
    if kind == "reported":
        return open_reported(payload, key, device_id)
    return open_batch(payload, key, device_id, rest)
