"""Announce: sign what a device should run and publish it, retained. Same content, same bytes.

A counter is on disk before anything that carries it leaves, so a device never sees one twice with
different content.
"""

from __future__ import annotations

import base64
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import event, select
from sqlmodel import Session, col

from edgefleet_cloud.database import Database, after_commit
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.ports import Catalog, Clock, Director, EventSink, Transport
from edgefleet_cloud.rollouts.slots import desired
from edgefleet_cloud.rollouts.tables import AnnouncementRow
from edgefleet_shared import bundle, strict_json, topics
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import Assignment, Desired, SlotAssignment
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

_PENDING = "announcer.pending"
_DECIDES = re.compile(r"\d+\.(root|targets)\.json")


class Settings(NamedTuple):
    """Fleet name, where devices fetch blobs, and how long an assignment holds."""

    fleet: str
    blobs: Callable[[], str]
    life: timedelta


class Announcer:
    """Keeps one signed assignment a device, and publishes it.

    Args:
        settings: What every document repeats.
        database: For what happens outside a caller's transaction.
        devices: Knows the devices, their keys and counters.
        director: Signs.
        catalog: Gives the TUF files that travel with an assignment.
        transport: Carries documents.
        events: Told of every new assignment.
        clock: Dates assignments.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        devices: Devices,
        director: Director,
        catalog: Catalog,
        transport: Transport,
        events: EventSink,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._database = database
        self._devices = devices
        self._director = director
        self._catalog = catalog
        self._transport = transport
        self._events = events
        self._clock = clock
        self._trusted: tuple[bytes, str] = (b"", "")
        self._sending = threading.Lock()
        self._sent: deque[tuple[str, int]] = deque()

    def announce(self, session: Session, device_ids: Iterable[str]) -> None:
        """Tell devices what they should run, once the caller's transaction is committed.

        Signed once a device just before the commit, however often its slots changed until then.
        """
        pending: dict[str, None] | None = session.info.get(_PENDING)
        if pending is None:
            pending = session.info[_PENDING] = {}
            event.listen(session, "before_commit", self._settle, once=True)
        pending.update(dict.fromkeys(device_ids))

    def _settle(self, session: Session) -> None:
        for device_id in session.info.pop(_PENDING):
            self.renew(session, self._devices.get(session, device_id))

    def renew(self, session: Session, device: DeviceRow, *, force: bool = False) -> None:
        """Publish a device's assignment after the commit, signing anew only if it must be.

        Args:
            session: The caller's transaction.
            device: Whose.
            force: Sign anew although the content is the same.
        """
        if self._current(session, device, force=force):
            self._publish_later(session, device.id)

    def document(self, session: Session, device: DeviceRow) -> bytes:
        """Return a device's document for another way than the transport, signed anew if it must be.

        Raises:
            NotFoundError: Nothing is assigned to it, or it is not enrolled (code `not_assigned`).
        """
        before = session.get(AnnouncementRow, device.id)
        known = before.counter if before else 0
        row = self._current(session, device)
        if row is None:
            raise NotFoundError(
                f"Nothing is assigned to {device.id}.",
                code="not_assigned",
                hint="Roll a model out to it first; it must be enrolled.",
            )
        if row.counter != known:
            self._publish_later(session, device.id)
        return self._document(row)

    def _current(
        self, session: Session, device: DeviceRow, *, force: bool = False
    ) -> AnnouncementRow | None:
        slots = desired(session, device.id)
        if not slots or device.state != ENROLLED:
            return None
        row = session.get(AnnouncementRow, device.id)
        content = _content(device.key, slots)
        now = self._clock()
        if force or row is None or row.content != content or self._is_old(row, now):
            row = self._sign(session, device, slots, content, now)
        return row

    def answer(self, session: Session, device_id: str) -> None:
        """Answer a device that asks for its document."""
        self.renew(session, self._devices.get(session, device_id))

    def catch_up(self, session: Session, device_id: str, counter: int) -> None:
        """Go beyond a counter that a device says, signed, it has accepted.

        Ours is behind after the database was restored from an older copy; all that is signed with
        a lower counter would be refused as a replay.
        """
        device = self._devices.get(session, device_id)
        if counter > device.counter:
            device.counter = counter
            self.renew(session, device, force=True)

    def recover(self) -> None:
        """Publish what a process that died had signed and perhaps not sent."""
        with self._database.read() as session:
            query = (
                select(AnnouncementRow.device)  # type: ignore[call-overload]  # SQLModel types a column as its value
                .join(DeviceRow, col(DeviceRow.id) == col(AnnouncementRow.device))
                .where(col(DeviceRow.state) == ENROLLED, col(AnnouncementRow.sent).is_(False))
            )
            unsent = session.scalars(query).all()
        for device_id in unsent:
            self._publish(device_id)

    def refresh(self) -> None:
        """Sign anew what is past half of its life or older than today's root and targets."""
        self._note_sent()
        half = format_time(self._clock() - self._settings.life / 2)
        with self._database.read() as session:
            query = (
                select(AnnouncementRow.device)  # type: ignore[call-overload]  # as above
                .join(DeviceRow, col(DeviceRow.id) == col(AnnouncementRow.device))
                .where(
                    col(DeviceRow.state) == ENROLLED,
                    (col(AnnouncementRow.issued) < half)
                    | (col(AnnouncementRow.trust) != self._trust()),
                )
            )
            due = session.scalars(query).all()
        for device_id in due:
            with self._database.write() as session:
                self.renew(session, self._devices.get(session, device_id))

    def _is_old(self, row: AnnouncementRow, now: datetime) -> bool:
        half = format_time(now - self._settings.life / 2)
        return row.issued < half or row.trust != self._trust()

    def _sign(
        self,
        session: Session,
        device: DeviceRow,
        slots: dict[str, SlotAssignment],
        content: str,
        now: datetime,
    ) -> AnnouncementRow:
        before = {"counter": device.counter}
        device.counter += 1
        issued, expires = format_time(now), format_time(now + self._settings.life)
        envelope = self._director.sign(
            Assignment(
                v=1,
                fleet=self._settings.fleet,
                device=device.id,
                key=device.key,
                counter=device.counter,
                issued=issued,
                expires=expires,
                slots=slots,
            )
        )
        row = session.get(AnnouncementRow, device.id) or AnnouncementRow(
            device=device.id, counter=0, content="", envelope=b"", issued="", expires="", trust=""
        )
        row.counter, row.content, row.envelope = device.counter, content, envelope
        row.issued, row.expires, row.trust, row.sent = issued, expires, self._trust(), False
        session.add(device)
        session.add(row)
        wanted = ", ".join(
            f"{slot.model} {slot.version}" if slot.mode == "run" else f"no {slot.model}"
            for slot in slots.values()
        )
        self._events.record(
            session,
            type="assignment.signed",
            step=Step.ANNOUNCE,
            subject=f"devices/{device.id}",
            message=f"Assignment {device.counter} for {device.id}: {wanted}.",
            data={"counter": device.counter, "expires": expires},
            before=before,
            after={
                "counter": device.counter,
                "expires": expires,
                "slots": {
                    name: {"mode": s.mode, "version": s.version, "manifest": s.manifest}
                    for name, s in slots.items()
                },
            },
        )
        return row

    def _publish_later(self, session: Session, device_id: str) -> None:
        after_commit(session, lambda: self._publish(device_id))

    def _publish(self, device_id: str) -> None:
        """Send the newest stored assignment, whichever transaction wrote it."""
        # One after another: a reader who is late must not put an older one behind a newer.
        with self._sending, self._database.read() as session:
            row = session.get(AnnouncementRow, device_id)
            if row is None:
                return
            future = self._transport.publish(
                topics.desired(device_id), self._document(row), retain=True
            )
        if not row.sent:
            # In the transport's thread: only remember it there.
            future.add_done_callback(lambda sent: self._remember(sent, device_id, row.counter))

    def _remember(self, sent: Future[None], device_id: str, counter: int) -> None:
        if not sent.cancelled() and sent.exception() is None:
            self._sent.append((device_id, counter))

    def _document(self, row: AnnouncementRow) -> bytes:
        """Return the one message that travels alike by MQTT, HTTP and USB stick."""
        document = Desired(
            v=1,
            counter=row.counter,
            ts=format_time(self._clock()),
            assignment=base64.b64encode(row.envelope).decode(),
            bundle=base64.b64encode(self._catalog.bundle()).decode(),
            blobs=self._settings.blobs(),
        )
        return strict_json.encode(document)

    def _note_sent(self) -> None:
        if not self._sent:
            return
        with self._database.write() as session:
            while self._sent:
                device_id, counter = self._sent.popleft()
                row = session.get(AnnouncementRow, device_id)
                if row and row.counter == counter:
                    row.sent = True
                    session.add(row)

    def _trust(self) -> str:
        """Return which root and targets stand: they decide who the director is."""
        data = self._catalog.bundle()
        if data != self._trusted[0]:
            names = sorted(filter(_DECIDES.fullmatch, bundle.decode(data)))
            self._trusted = (data, " ".join(names))
        return self._trusted[1]


def _content(key: str, slots: dict[str, SlotAssignment]) -> str:
    return sha256_digest(key.encode() + b"\0" + strict_json.encode(slots))
