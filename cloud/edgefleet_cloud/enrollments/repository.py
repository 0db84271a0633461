"""SQL of the tickets."""

from __future__ import annotations

from sqlalchemy import CursorResult, update
from sqlmodel import Session, col

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
