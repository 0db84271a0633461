"""Tickets and certificates. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.authority import requests
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.devices.service import Devices, refuse_decommissioned
from edgefleet_cloud.devices.service import described as device_state
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.enrollments import repository, tickets
from edgefleet_cloud.enrollments.groups import (
    KEY_CHARACTERS,
    GroupTickets,
    Kind,
    check_scope,
    refused,
)
from edgefleet_cloud.enrollments.tables import GroupTicketRow, TicketRow
from edgefleet_cloud.iothub.ways import Address, Ways
from edgefleet_cloud.ports import Catalog, Clock, EventSink, system_clock
from edgefleet_shared.identifiers import check_device, sha256_digest
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time


class Addresses(NamedTuple):
    """Where a device finds the fleet: the API's base URL, and the ways to devices."""

    api: str
    ways: Ways


class Issued(NamedTuple):
    """A ticket's text and its end."""

    text: str
    not_after: str


class Enrolled(NamedTuple):
    """What a device is told once: who it is and where the fleet answers."""

    fleet: str
    device: str
    certificate: str
    ca: str
    root: bytes
    api: str
    transport: Address
    counter: int
    minimum: Mapping[str, int]


class Enrollments:
    """Gives tickets to operators and certificates to devices.

    Args:
        fleet: The fleet's name.
        certificates: Signs and remembers them.
        catalog: Knows the first TUF root, on which a device pins its trust.
        devices: Finds devices.
        events: Told of tickets, enrolments and refusals.
        addresses: Asked each time, for ports are known only once everything runs.
        clock: Tells the time.
    """

    def __init__(
        self,
        fleet: str,
        certificates: Certificates,
        catalog: Catalog,
        devices: Devices,
        events: EventSink,
        addresses: Callable[[], Addresses],
        clock: Clock = system_clock,
    ) -> None:
        self._fleet = fleet
        self._certificates = certificates
        self._catalog = catalog
        self._devices = devices
        self._events = events
        self._addresses = addresses
        self._clock = clock
        self.groups = GroupTickets(devices, events)

    def issue(
        self,
        session: Session,
        device_id: str,
        life: timedelta,
        actor: str,
        scope: Scope = None,
        way: str = "",
    ) -> Issued:
        """Return a new ticket for a device; it is shown once, and only its hash is kept.

        Args:
            session: The transaction.
            device_id: Whose.
            life: How long it holds.
            actor: Who asks.
            scope: The caller's.
            way: Where the device shall be reached: a hub's name, or `mqtt`; '' = the default.

        Raises:
            InvalidInputError: There is no such way (code `unknown_way`).
            NotFoundError: There is no such device within the scope.
            ConflictError: It is decommissioned.
        """
        row = self._devices.get(session, device_id, scope)
        refuse_decommissioned(row)
        now, addresses = self._clock(), self._addresses()
        addresses.ways.check(way)
        root = sha256_digest(self._catalog.first_root())
        ticket = tickets.issue(self._fleet, row.id, addresses.api, root, now + life)
        session.add(
            TicketRow(
                secret_hash=tickets.secret_hash(ticket),
                device=row.id,
                created=format_time(now),
                not_after=ticket.not_after,
                way=way,
            )
        )
        message = f"A ticket for {row.id} was made, good until {ticket.not_after}."
        after = {"device": row.id, "not_after": ticket.not_after, "used": None}
        self._tell(session, row, "device.ticket", message, actor, after=after)
        return Issued(tickets.encode(ticket), ticket.not_after)

    def issue_group(
        self, session: Session, kind: Kind, life: timedelta, actor: str, scope: Scope = None
    ) -> tuple[GroupTicketRow, Issued]:
        """Return a new ticket for up to `kind.limit` devices; it is shown once.

        Raises:
            InvalidInputError: A bad prefix, label, hardware or way.
            ForbiddenError: Its devices would be outside of the scope (code `outside_scope`).
        """
        check_device(kind.prefix + "-" + "0" * KEY_CHARACTERS)
        check_scope(scope, kind)
        now = self._clock()
        root = sha256_digest(self._catalog.first_root())
        url, ways = self._addresses()
        ways.check(kind.way)
        ticket = tickets.issue(self._fleet, "", url, root, now + life, kind.prefix)
        row = self.groups.add(session, ticket, kind, now, actor, scope)
        return row, Issued(tickets.encode(ticket), ticket.not_after)

    def certificates(
        self, session: Session, device_id: str, scope: Scope = None
    ) -> Sequence[CertificateRow]:
        """Return the certificates that a device was given, newest first.

        Raises:
            NotFoundError: There is no such device within the scope.
        """
        row = self._devices.get(session, device_id, scope)
        return self._certificates.of_device(session, row.id)

    def end_group(self, session: Session, ticket: str, actor: str, scope: Scope = None) -> None:
        """End a group ticket.

        Raises:
            NotFoundError: There is none of this id within the scope.
        """
        self.groups.end(session, ticket, self._clock(), actor, scope)

    def enroll(self, session: Session, text: str, request: str, proposed: str = "") -> Enrolled:
        """Burn a ticket and return its device's certificate for the key in the request.

        A request that cannot be used leaves the ticket as it is. A used ticket answers again for
        the very key that used it: the first answer may have been lost on the way.

        Args:
            session: The transaction.
            text: The ticket.
            request: The certificate request, PEM.
            proposed: The id that a device with a group's ticket asks for; '' = from its key.

        Raises:
            InvalidInputError: Not a ticket or not a request that may be signed.
            ForbiddenError: The ticket is unknown, used or expired (code `ticket_refused`).
            ConflictError: The device is decommissioned.
        """
        key = requests.read_request(request)
        ticket = tickets.decode(text)
        described = requests.describe(key)
        row, way, again = self._redeem(session, ticket, described.digest, proposed)
        api, ways = self._addresses()
        before = device_state(row)
        certificate = self._certificates.issue(session, row.id, key)
        if not again:
            # A new key starts a new life: what the old one numbered says nothing about it.
            row.state, row.public_key, row.key = ENROLLED, described.pem, described.digest
            row.previous_key, row.previous_until, row.renewal_asked = "", None, None
            row.enrollment += 1
            row.revision += 1
            row.reported_seq = 0
            ways.admit(session, row, way, format_time(self._clock()))
            self._certificates.supersede(session, row.id, keep=row.key)
        message = f"{row.id} {'was answered again' if again else 'enrolled'}."
        after = device_state(row)
        self._tell(session, row, "device.enrolled", message, f"devices/{row.id}", before, after)
        return Enrolled(
            self._fleet,
            row.id,
            certificate,
            self._certificates.ca.pem,
            self._catalog.first_root(),
            api,
            ways.told(row.way),
            row.counter,
            self._catalog.versions(),
        )

    def _redeem(
        self, session: Session, ticket: tickets.Ticket, key: str, proposed: str
    ) -> tuple[DeviceRow, str, bool]:
        """Use a ticket up; return its device and way, and whether the key was the device's."""
        now = self._clock()
        if ticket.group and ticket.fleet == self._fleet:
            return self.groups.redeem(session, ticket, proposed, key, now)
        found = repository.find(session, tickets.secret_hash(ticket))
        if found is None or (found.device, self._fleet) != (ticket.device, ticket.fleet):
            raise refused("The ticket is not one of this fleet's.")
        row = self._devices.get(session, found.device)
        refuse_decommissioned(row)
        if parse_time(found.not_after) <= now:
            raise refused(f"The ticket expired at {found.not_after}.")
        # Who has a stolen device may have its tickets too, used or not.
        if found.created < self._certificates.last_revocation(session, row.id):
            raise refused(f"{row.id} was revoked after the ticket was made.")
        if repository.burn(session, found.secret_hash, format_time(now)):
            return row, found.way, False
        if row.key != key:
            raise refused(f"The ticket was used at {found.used}.")
        return row, found.way, True

    def _tell(
        self,
        session: Session,
        row: DeviceRow,
        kind: str,
        message: str,
        actor: str,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> None:
        self._events.record(
            session,
            type=kind,
            step=Step.TARGET,
            subject=f"devices/{row.id}",
            message=message,
            actor=actor,
            data={"key": row.key},
            before=before,
            after=after,
        )
