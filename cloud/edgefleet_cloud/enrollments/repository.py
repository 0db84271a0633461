"""SQL of the tickets."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CursorResult, select, update
from sqlmodel import Session, col

from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.enrollments.tables import TicketRow


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


def issued_by_others(session: Session, issuer: str, limit: int) -> Sequence[str]:
    """Return enrolled devices that have no certificate of `issuer`, and were not asked to renew."""
    modern = select(CertificateRow.device).where(  # type: ignore[call-overload]  # as its value
        col(CertificateRow.issuer) == issuer, col(CertificateRow.revoked).is_(None)
    )
    rows = (
        select(DeviceRow.id)  # type: ignore[call-overload]  # SQLModel types a column as its value
        .where(
            col(DeviceRow.state) == ENROLLED,
            col(DeviceRow.renewal_asked).is_(None),
            col(DeviceRow.id).not_in(modern),
        )
        .order_by(col(DeviceRow.id))
    )
    found: Sequence[str] = session.scalars(rows.limit(limit)).all()
    return found
