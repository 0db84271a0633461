"""Renewal: a device's new key on the word of its old one. The caller owns session and commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from securesystemslib.signer import Key
from sqlmodel import Session

from edgefleet_cloud.authority import requests
from edgefleet_cloud.authority.requests import DeviceKey
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.devices import repository as device_rows
from edgefleet_cloud.devices.keys import key_of_row, previous_key_of_row
from edgefleet_cloud.devices.tables import REVOKED, DeviceRow
from edgefleet_cloud.enrollments.asking import Asking
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.ports import Catalog, Clock, DirectorSeal, EventSink, system_clock
from edgefleet_cloud.refusals import Refusals
from edgefleet_shared import strict_json
from edgefleet_shared.errors import EdgeFleetError, TrustError
from edgefleet_shared.renewal import ANSWER_TYPE, Renewal, Renewed, open_request
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

Announce = Callable[[Session, Iterable[str]], None]
"""Signs anew what devices should run, for it names their keys."""


class Answer(NamedTuple):
    """What a device gets: the director's sealed word, and the catalog that says who that is."""

    sealed: bytes
    bundle: bytes


class Renewals:
    """Renews devices' keys and certificates.

    Args:
        fleet: The fleet's name.
        certificates: Signs and remembers them.
        seal: Signs answers.
        catalog: Travels with each answer.
        asking: Told who has renewed.
        announce: Signs assignments for the new key.
        events: Told of renewals and refusals.
        grace: How long after its last certificate has expired a device may still renew by its key.
        clock: Tells the time.
    """

    def __init__(
        self,
        fleet: str,
        certificates: Certificates,
        seal: DirectorSeal,
        catalog: Catalog,
        asking: Asking,
        announce: Announce,
        events: EventSink,
        grace: timedelta,
        clock: Clock = system_clock,
    ) -> None:
        self._fleet = fleet
        self._certificates = certificates
        self._seal = seal
        self._catalog = catalog
        self._asking = asking
        self._announce = announce
        self._events = events
        self._grace = grace
        self._clock = clock
        self._refusals = Refusals()
        self._turn = threading.Lock()

    def renew(self, session: Session, device_id: str, sealed: bytes) -> Answer:
        """Certify the key in a request that the device's present key has signed.

        A request signed by the key before it is answered only if it asks for the very key that is
        the device's now: the first answer was lost on the way.

        Raises:
            InvalidInputError: It cannot be read, or its certificate request may not be signed.
            TrustError: The device's key did not sign it (code `signature`).
            ForbiddenError: No such device (`renewal_refused`), it is revoked (`revoked`), or its
                certificate expired too long ago (`renewal_too_late`).
        """
        row = device_rows.find(session, device_id)
        now = self._clock()
        key = key_of_row(row)
        if row is None or key is None:
            raise _refused(row)
        request, by_present = self._open(row, key, sealed, now)
        self._check_grace(session, row, now)
        public = requests.read_request(request.csr)
        described = requests.describe(public)
        certificate = self._certify(session, row, request, (public, described), by_present)
        self._asking.renewed(session, row)
        answer = Renewed(
            v=1,
            fleet=self._fleet,
            device=row.id,
            key=described.digest,
            nonce=request.nonce,
            ts=format_time(now),
            certificate=certificate,
            ca=self._certificates.ca.pem,
        )
        return Answer(
            self._seal.seal(strict_json.encode(answer), ANSWER_TYPE), self._catalog.bundle()
        )

    def refuse(self, session: Session, device_id: str, error: EdgeFleetError) -> None:
        """Raise the alarm about a request that was refused; a flood of them is cut."""
        with self._turn:
            untold = self._refusals.admit(device_id, error.code)
        if untold is not None:
            self._events.record(
                session,
                type="device.renewal_refused",
                step=Step.TARGET,
                subject=f"devices/{device_id[:80]}",
                message=f"A renewal for {device_id[:80]} was refused: {error.message}",
                data={"code": error.code, "untold_before": untold},
            )

    def _open(self, row: DeviceRow, key: Key, sealed: bytes, now: datetime) -> tuple[Renewal, bool]:
        """Return the request, and whether the present key has signed it."""
        try:
            return open_request(sealed, key, self._fleet, row.id), True
        except TrustError as error:
            previous = previous_key_of_row(row, now)
            if error.code != "signature" or previous is None:
                raise
            return open_request(sealed, previous, self._fleet, row.id), False

    def _certify(
        self,
        session: Session,
        row: DeviceRow,
        request: Renewal,
        key: tuple[EllipticCurvePublicKey, DeviceKey],
        by_present: bool,
    ) -> str:
        public, described = key
        again = described.digest == row.key
        if not by_present and (not again or request.purpose != "identity"):
            raise TrustError("The device's present key did not sign this.", code="signature")
        if not by_present and (found := self._certificates.current(session, row.id, row.key)):
            return found
        if request.purpose == "session":
            certificate = self._certificates.issue(session, row.id, public, for_session=True)
            self._tell(session, row, f"{row.id} has a new key for TLS.", row.key)
            return certificate
        before = row.key
        if not again:
            row.previous_key, row.previous_until = row.public_key, None
            row.public_key, row.key = described
            row.revision += 1
            session.add(row)
            self._announce(session, [row.id])
        certificate = self._certificates.issue(session, row.id, public)
        self._tell(session, row, f"{row.id} renewed.", before)
        return certificate

    def _check_grace(self, session: Session, row: DeviceRow, now: datetime) -> None:
        newest = self._certificates.newest(session, row.id)
        if newest is not None and parse_time(newest.not_after) + self._grace < now:
            raise ForbiddenError(
                f"{row.id}'s certificate expired at {newest.not_after}, too long ago to renew.",
                code="renewal_too_late",
                hint="Enrol the device anew with a ticket, or raise renewal_grace_days.",
            )

    def _tell(self, session: Session, row: DeviceRow, message: str, before: str) -> None:
        self._events.record(
            session,
            type="device.renewed",
            step=Step.TARGET,
            subject=f"devices/{row.id}",
            message=message,
            actor=f"devices/{row.id}",
            before={"key": before},
            after={"key": row.key},
        )


def _refused(row: DeviceRow | None) -> ForbiddenError:
    if row is not None and row.state == REVOKED:
        return ForbiddenError(
            f"{row.id} is revoked.", code="revoked", hint="A new ticket readmits it."
        )
    return ForbiddenError(
        "No device of this id may renew.",
        code="renewal_refused",
        hint="Enrol it with a ticket of this fleet's.",
    )
