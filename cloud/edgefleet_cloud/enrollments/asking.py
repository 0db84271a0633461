"""Asks devices to renew: by a word of an operator's, or because the authorities have changed.

The word is a retained message that names the key to be replaced, so that it does nothing once that
has happened, however often and late it comes.
"""

from __future__ import annotations

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.database import Database, after_commit
from edgefleet_cloud.devices import repository as device_rows
from edgefleet_cloud.devices.service import Devices, refuse_decommissioned
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.enrollments import repository
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.ports import Clock, EventSink, Transport, system_clock
from edgefleet_shared import strict_json, topics
from edgefleet_shared.renewal import RenewAsk
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

AT_A_TIME = 100
"""Devices asked at one sweep after a rotation, so that not all of them come at once."""


class Asking:
    """Asks, remembers that it has asked, and takes the word back when it was heard.

    Args:
        database: For the sweep's transaction.
        devices: Finds devices.
        certificates: Knows who issued them.
        transport: Carries the word.
        events: Told of an operator's word.
        clock: Tells the time.
    """

    def __init__(
        self,
        database: Database,
        devices: Devices,
        certificates: Certificates,
        transport: Transport,
        events: EventSink,
        clock: Clock = system_clock,
    ) -> None:
        self._database = database
        self._devices = devices
        self._certificates = certificates
        self._transport = transport
        self._events = events
        self._clock = clock
        self._settled = ""  # the authorities that nobody is left to be told of

    def ask(self, session: Session, device_id: str, actor: str, scope: Scope = None) -> DeviceRow:
        """Ask one device to renew, now or on its next contact.

        Raises:
            NotFoundError: There is no such device.
            ConflictError: It is not enrolled (code `not_enrolled`), or decommissioned.
        """
        row = self._devices.get(session, device_id, scope)
        refuse_decommissioned(row)
        if row.state != ENROLLED:
            raise ConflictError(
                f"{row.id} is {row.state}, so there is nothing that it could renew.",
                code="not_enrolled",
                hint="Give it a ticket: edgefleet device ticket.",
            )
        before = row.renewal_asked
        self._ask(session, row)
        self._events.record(
            session,
            type="device.renewal_asked",
            step=Step.TARGET,
            subject=f"devices/{row.id}",
            message=f"{row.id} is asked to renew its key.",
            actor=actor,
            data={"key": row.key},
            before={"renewal_asked": before},
            after={"renewal_asked": row.renewal_asked},
        )
        return row

    def remind(self, session: Session, device_id: str) -> None:
        """Say it again to a device that has just connected, if it was asked and has not renewed."""
        row = device_rows.find(session, device_id)
        if row and row.state == ENROLLED and (row.renewal_asked or self._is_old(session, row)):
            self._ask(session, row)

    def renewed(self, session: Session, row: DeviceRow) -> None:
        """Take the word back: the device has renewed."""
        if row.renewal_asked is not None:
            row.renewal_asked = None
            session.add(row)
            self._later(session, row.id, b"")

    def sweep(self) -> None:
        """Ask, a hundred at a time, devices that were not told who is trusted now."""
        bundle = self._certificates.ca.bundle
        if bundle == self._settled:
            return
        with self._database.read() as session:
            due = repository.not_told(session, bundle, AT_A_TIME)
        if not due:
            self._settled = bundle
        else:
            with self._database.write() as session:
                for device_id in due:
                    self._ask(session, self._devices.get(session, device_id))

    def _is_old(self, session: Session, row: DeviceRow) -> bool:
        rows, bundle = self._certificates.of_device(session, row.id), self._certificates.ca.bundle
        told = any(found.bundle == bundle and found.revoked is None for found in rows)
        return bool(rows) and not told

    def _ask(self, session: Session, row: DeviceRow) -> None:
        if row.renewal_asked is None:
            row.renewal_asked = format_time(self._clock())
            session.add(row)
        self._later(session, row.id, strict_json.encode(RenewAsk(1, row.key)))

    def _later(self, session: Session, device_id: str, payload: bytes) -> None:
        topic = topics.renew(device_id)
        after_commit(session, lambda: _forget(self._transport.publish(topic, payload, retain=True)))


def _forget(_sent: object) -> None:
    """Wait for nothing: what is not sent now is said again when the device connects."""
