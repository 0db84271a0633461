"""Group tickets: one ticket for up to N devices of one kind, each bound to its key on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope, describe, read_scope
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.devices import repository as device_rows
from edgefleet_cloud.devices.labels import check_hardware, check_labels
from edgefleet_cloud.devices.scoping import check_stays, covers
from edgefleet_cloud.devices.service import Devices, refuse_decommissioned
from edgefleet_cloud.devices.tables import REGISTERED, REVOKED, DeviceRow
from edgefleet_cloud.enrollments import repository, tickets
from edgefleet_cloud.enrollments.tables import GroupTicketRow, GroupUseRow
from edgefleet_cloud.errors import ForbiddenError, NotFoundError
from edgefleet_cloud.ports import EventSink
from edgefleet_shared.identifiers import check_device, new_id
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

KEY_CHARACTERS = 12


class Kind(NamedTuple):
    """What the devices of a group ticket are alike in.

    Attributes:
        prefix: Their ids begin with it, then `-`.
        labels: They have these.
        hardware: What they are.
        limit: How many there may be.
        way: Where they shall be reached: a hub's name, or `mqtt`; '' = the default.
    """

    prefix: str
    labels: Mapping[str, str]
    hardware: str
    limit: int
    way: str = ""


class GroupTickets:
    """Makes, redeems and ends group tickets. The caller owns the session and its commit.

    Args:
        devices: Registers devices on their first use of a ticket.
        events: Told of tickets made and ended.
    """

    def __init__(self, devices: Devices, events: EventSink) -> None:
        self._devices = devices
        self._events = events

    def add(
        self,
        session: Session,
        ticket: tickets.Ticket,
        kind: Kind,
        now: datetime,
        actor: str,
        scope: Scope = None,
    ) -> GroupTicketRow:
        """Remember a new ticket; only the hash of its secret is kept.

        Raises:
            InvalidInputError: A bad prefix, label or hardware.
        """
        row = GroupTicketRow(
            id=new_id(),
            secret_hash=tickets.secret_hash(ticket),
            prefix=kind.prefix,
            labels=check_labels(kind.labels),
            hardware=check_hardware(kind.hardware),
            limit=kind.limit,
            scope=describe(scope),
            created=format_time(now),
            not_after=ticket.not_after,
            way=kind.way,
        )
        session.add(row)
        message = f"A ticket for {kind.limit} devices {kind.prefix}-... was made."
        self._tell(session, row, "made", message, actor)
        return row

    def redeem(
        self, session: Session, ticket: tickets.Ticket, proposed: str, key: str, now: datetime
    ) -> tuple[DeviceRow, str, bool]:
        """Use a ticket once; return the device, its way, and whether the key is its own already.

        Args:
            session: The transaction.
            ticket: The ticket.
            proposed: The id that the device asks for; '' derives one from its key.
            key: Digest of its key.
            now: Aware time.

        Raises:
            InvalidInputError: The id cannot name a device.
            ForbiddenError: The ticket is unknown, ended, expired or used up, or the id is another
                device's or not of the ticket's prefix (code `ticket_refused`).
        """
        found = repository.find_group(session, tickets.secret_hash(ticket))
        if found is None or found.prefix != ticket.group:
            raise refused("The ticket is not one of this fleet's.")
        name = proposed or derived_id(found.prefix, key)
        check_device(name)
        if not name.startswith(f"{found.prefix}-"):
            raise refused(f"The ticket is for devices {found.prefix}-..., not for {name!r}.")
        if parse_time(found.not_after) <= now or found.ended is not None:
            raise refused("The ticket has ended.")
        if use := repository.use_of(session, found.id, key):
            return self._again(session, use, name, key), found.way, True
        if not repository.take(session, found.id):
            raise refused(f"The ticket was used {found.limit} times already, which is its limit.")
        session.add(GroupUseRow(ticket=found.id, key=key, device=name))
        return self._admit(session, found, name), found.way, False

    def page(self, session: Session, scope: Scope = None) -> Sequence[GroupTicketRow]:
        """Return the tickets within a scope, newest first."""
        return [row for row in repository.group_tickets(session) if covers(scope, probe(row))]

    def end(self, session: Session, ticket: str, now: datetime, actor: str, scope: Scope) -> None:
        """End a ticket: nobody enrols with it any more. Doing it again changes nothing.

        Raises:
            NotFoundError: There is none of this id within the scope.
        """
        row = session.get(GroupTicketRow, ticket)
        if row is None or not covers(scope, probe(row)):
            raise NotFoundError(
                f"There is no group ticket {ticket[:80]!r}.", hint="GET /v1/group-tickets."
            )
        if row.ended is None:
            row.ended = format_time(now)
            session.add(row)
            self._tell(session, row, "ended", f"The ticket for {row.prefix}-... ended.", actor)

    def _again(self, session: Session, use: GroupUseRow, name: str, key: str) -> DeviceRow:
        row = self._devices.get(session, use.device)
        refuse_decommissioned(row)
        if row.state == REVOKED:
            raise refused(f"{name} was revoked; a ticket of its own readmits it.")
        if use.device != name or row.key != key:
            raise refused("This key has used the ticket already, as another device.")
        return row

    def _admit(self, session: Session, ticket: GroupTicketRow, name: str) -> DeviceRow:
        """Register a device, or take one that was registered beforehand and fits the ticket."""
        row = device_rows.find(session, name)
        # The id is chosen only now; a device registered beforehand has labels of its own.
        scope = read_scope(Role.PROVISIONER, ticket.scope)
        if row is None:
            actor = f"tickets/{ticket.id}"
            return self._devices.create(session, name, ticket.labels, ticket.hardware, actor, scope)
        fits = (
            covers(scope, row)
            and row.hardware == ticket.hardware
            and ticket.labels.items() <= row.labels.items()
        )
        if row.state != REGISTERED or not fits:
            raise refused(f"{name} is another device.")
        return row

    def _tell(
        self, session: Session, row: GroupTicketRow, what: str, message: str, actor: str
    ) -> None:
        facts = row.model_dump(
            include={"prefix", "labels", "hardware", "limit", "not_after", "way"}
        )
        self._events.record(
            session,
            type=f"group_ticket.{what}",
            step=Step.TARGET,
            subject=f"group-tickets/{row.id}",
            message=message,
            actor=actor,
            data=facts,
            before=None if what == "made" else {**facts, "ended": None},
            after={**facts, "ended": row.ended},
        )


def derived_id(prefix: str, key: str) -> str:
    """Return the id of a device that proposes none: the prefix and the first digits of its key."""
    return f"{prefix}-{key.removeprefix('sha256:')[:KEY_CHARACTERS]}"


def probe(ticket: GroupTicketRow) -> DeviceRow:
    """Return what a device of the ticket's would be, for asking whether a scope covers it."""
    return DeviceRow(
        id=f"{ticket.prefix}-", created="", labels=ticket.labels, hardware=ticket.hardware
    )


def check_scope(scope: Scope, kind: Kind) -> None:
    """Check that every device of a kind would be within a scope.

    Raises:
        ForbiddenError: They would not (code `outside_scope`).
    """
    check_stays(
        scope,
        DeviceRow(
            id=f"{kind.prefix}-", created="", labels=dict(kind.labels), hardware=kind.hardware
        ),
    )


def refused(message: str) -> ForbiddenError:
    """Return the error of a ticket that opens nothing."""
    return ForbiddenError(
        message,
        code="ticket_refused",
        hint="Ask the operator for a new one: edgefleet device ticket, or group-ticket.",
    )
