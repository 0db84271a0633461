"""What can be done with devices. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.database import reason_of
from edgefleet_cloud.devices import repository
from edgefleet_cloud.devices.labels import check_hardware, check_labels, patch
from edgefleet_cloud.devices.scoping import check_stays, covers
from edgefleet_cloud.devices.tables import DECOMMISSIONED, REVOKED, DeviceRow
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.filters import Node, parse
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.identifiers import check_device
from edgefleet_shared.messages import SlotAssignment
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

Revoke = Callable[[Session, str, str], object]
"""Takes all certificates of a device back, for a reason; answered by the authority."""

DesiredSlots = Callable[[Session, str], Mapping[str, SlotAssignment]]
"""What a device's newest assignment says, by slot; answered by the room that assigns."""


def nothing_desired(_session: Session, _device_id: str) -> Mapping[str, SlotAssignment]:
    """Answer for a device that nothing was assigned to."""
    return {}


def no_certificates(_session: Session, _device_id: str, _reason: str) -> int:
    """Answer where no certificates were given."""
    return 0


class Devices:
    """The devices of the fleet.

    Args:
        events: Told of what operators change.
        desired: Knows what a device should run.
        clock: Dates what is created.
        revoke: Takes certificates back.
    """

    def __init__(
        self,
        events: EventSink,
        desired: DesiredSlots = nothing_desired,
        clock: Clock = system_clock,
        revoke: Revoke = no_certificates,
    ) -> None:
        self._events = events
        self._clock = clock
        self._revoke = revoke
        self.desired = desired

    def get(self, session: Session, device_id: str, scope: Scope = None) -> DeviceRow:
        """Return a device.

        Raises:
            NotFoundError: There is none of this id, or none within the scope.
        """
        row = repository.find(session, device_id)
        if row is None or not covers(scope, row):
            raise NotFoundError(
                f"There is no device {device_id[:80]!r}.", hint="GET /v1/devices lists them."
            )
        return row

    def page(
        self, session: Session, query: PageQuery, *within: Scope, in_service: bool = False
    ) -> tuple[Sequence[DeviceRow], str]:
        """Return one page and the token of the next, of the devices that all of `within` mean.

        Decommissioned ones are among them unless `in_service` leaves them out.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        node = self.selector(query.filter) if query.filter else None
        select = repository.members if in_service else repository.statement
        sortable = {"id": DeviceRow.id, "created": DeviceRow.created}
        return paginate(
            session,
            select(node, *within),
            query,
            sortable,
            DeviceRow.id,
            default="id",
        )

    def selector(self, text: str) -> Node:
        """Return the tree of a filter over devices.

        Raises:
            InvalidInputError: code `invalid_filter`.
        """
        return parse(text, repository.SCHEMA)

    def matching(
        self, session: Session, selector: Node | str, *within: Scope
    ) -> Sequence[DeviceRow]:
        """Return the devices that a selector means within scopes, by id; no decommissioned ones.

        Raises:
            InvalidInputError: The selector is text and cannot be read.
        """
        node = self.selector(selector) if isinstance(selector, str) else selector
        return repository.matching(session, node, *within)

    def create(
        self,
        session: Session,
        device_id: str,
        labels: Mapping[str, str],
        hardware: str,
        actor: str,
        scope: Scope = None,
    ) -> DeviceRow:
        """Register a device, which may then be given a ticket.

        Raises:
            InvalidInputError: A bad id, label or hardware.
            ForbiddenError: It would be outside of the scope (code `outside_scope`).
            ConflictError: The id is taken, by a decommissioned device perhaps.
        """
        row = DeviceRow(
            id=check_device(device_id),
            created=format_time(self._clock()),
            labels=check_labels(labels),
            hardware=check_hardware(hardware),
        )
        check_stays(scope, row)
        if repository.find(session, device_id):
            raise ConflictError(
                f"There is a device {device_id!r} already.",
                code="device_exists",
                hint="PATCH it to change labels, or choose another id.",
            )
        session.add(row)
        session.flush()
        self._tell(session, row, "registered", f"{device_id} is registered.", actor)
        return row

    def change(
        self,
        session: Session,
        row: DeviceRow,
        labels: Mapping[str, str | None] | None,
        hardware: str | None,
        actor: str,
        scope: Scope = None,
    ) -> DeviceRow:
        """Patch labels (null removes one) and hardware; what is None stays.

        Raises:
            InvalidInputError: A bad label or hardware.
            ForbiddenError: It would leave the scope (code `outside_scope`).
            ConflictError: The device is decommissioned.
        """
        refuse_decommissioned(row)
        before = described(row)
        if labels is not None:
            row.labels = patch(row.labels, labels)
        if hardware is not None:
            row.hardware = check_hardware(hardware)
        check_stays(scope, row)
        row.revision += 1
        session.add(row)
        self._tell(session, row, "changed", f"{row.id} is described anew.", actor, before)
        return row

    def decommission(self, session: Session, row: DeviceRow, actor: str) -> DeviceRow:
        """Take a device out for good: its key counts no more. Doing it again changes nothing."""
        if row.state != DECOMMISSIONED:
            before = described(row)
            self._shut_out(session, row, DECOMMISSIONED, "decommissioned")
            message = f"{row.id} is decommissioned."
            self._tell(session, row, "decommissioned", message, actor, before)
        return row

    def revoke(self, session: Session, row: DeviceRow, actor: str) -> DeviceRow:
        """Take a device's key and certificates back, and end its connection after the commit.

        With a new ticket it may enrol again. Doing it again ends its connection again.

        Raises:
            ConflictError: It is decommissioned, or has never enrolled (code `not_enrolled`).
        """
        refuse_decommissioned(row)
        if not row.key:
            raise ConflictError(
                f"{row.id} has no key that could be revoked.",
                code="not_enrolled",
                hint="It has not enrolled yet.",
            )
        before = described(row)
        self._shut_out(session, row, REVOKED, reason_of(session) or "revoked")
        self._tell(session, row, "revoked", f"{row.id} is revoked.", actor, before)
        return row

    def _shut_out(self, session: Session, row: DeviceRow, state: str, reason: str) -> None:
        row.state, row.online = state, False
        row.previous_key, row.previous_until, row.renewal_asked = "", None, None
        row.revision += 1
        session.add(row)
        self._revoke(session, row.id, reason)

    def _tell(
        self,
        session: Session,
        row: DeviceRow,
        what: str,
        message: str,
        actor: str,
        before: dict[str, Any] | None = None,
    ) -> None:
        self._events.record(
            session,
            type=f"device.{what}",
            step=Step.TARGET,
            subject=f"devices/{row.id}",
            message=message,
            actor=actor,
            data={"labels": row.labels, "hardware": row.hardware},
            before=before,
            after=described(row),
        )


def described(row: DeviceRow) -> dict[str, Any]:
    """Return what events say of a device, before and after a change of it."""
    return {
        "state": row.state,
        "labels": dict(row.labels),
        "hardware": row.hardware,
        "key": row.key,
        "enrollment": row.enrollment,
    }


def refuse_decommissioned(row: DeviceRow) -> None:
    """Check that a device is in service.

    Raises:
        ConflictError: It is decommissioned (code `decommissioned`).
    """
    if row.state == DECOMMISSIONED:
        raise ConflictError(
            f"{row.id} is decommissioned.",
            code="decommissioned",
            hint="Register a new device under another id.",
        )
