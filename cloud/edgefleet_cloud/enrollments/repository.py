"""SQL of the tickets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, select, update
from sqlmodel import Session, col

from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.enrollments.tables import GroupTicketRow, GroupUseRow, TicketRow


def find(session: Session, secret_hash: str) -> TicketRow | None:
    """Return a ticket, or None."""
    return session.get(TicketRow, secret_hash)


def burn(session: Session, secret_hash: str, now: str) -> bool:
    """Use a ticket up in one statement; return whether it was still unused."""
    result = session.execute(
        update(TicketRow)
        .where(col(TicketRow.secret_hash) == secret_hash, col(TicketRow.used).is_(None))
        .values(used=now)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def not_told(session: Session, bundle: str, limit: int) -> Sequence[str]:
    """Return enrolled devices that know other authorities than `bundle`, and were not yet asked."""
    query = _without(col(CertificateRow.bundle) == bundle)
    query = query.where(col(DeviceRow.renewal_asked).is_(None))
    found: Sequence[str] = session.scalars(query.limit(limit)).all()
    return found


def without_certificate_of(session: Session, issuer: str) -> Sequence[str]:
    """Return enrolled devices that have no certificate that counts of an authority, by id."""
    found: Sequence[str] = session.scalars(_without(col(CertificateRow.issuer) == issuer)).all()
    return found


def _without(good: ColumnElement[bool]) -> Select[Any]:
    modern = select(CertificateRow.device).where(  # type: ignore[call-overload]  # as its value
        good, col(CertificateRow.revoked).is_(None)
    )
    query: Select[Any] = (
        select(DeviceRow.id)  # type: ignore[call-overload]  # SQLModel types a column as its value
        .where(col(DeviceRow.state) == ENROLLED, col(DeviceRow.id).not_in(modern))
        .order_by(col(DeviceRow.id))
    )
    return query


def find_group(session: Session, secret_hash: str) -> GroupTicketRow | None:
    """Return a group ticket, or None."""
    rows = select(GroupTicketRow).where(col(GroupTicketRow.secret_hash) == secret_hash)
    return session.scalars(rows).one_or_none()


def group_tickets(session: Session) -> Sequence[GroupTicketRow]:
    """Return every group ticket, newest first."""
    rows = select(GroupTicketRow).order_by(col(GroupTicketRow.id).desc())
    return session.scalars(rows).all()


def take(session: Session, ticket: str) -> bool:
    """Use a group ticket once in one statement; return whether it was below its limit."""
    result = session.execute(
        update(GroupTicketRow)
        .where(
            col(GroupTicketRow.id) == ticket, col(GroupTicketRow.used) < col(GroupTicketRow.limit)
        )
        .values(used=col(GroupTicketRow.used) + 1)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def use_of(session: Session, ticket: str, key: str) -> GroupUseRow | None:
    """Return what a key has used a group ticket for, or None."""
    return session.get(GroupUseRow, (ticket, key))
