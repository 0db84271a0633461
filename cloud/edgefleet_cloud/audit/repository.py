"""SQL of the signed statements."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func
from sqlmodel import Session, col, select

from edgefleet_cloud.audit.tables import HeadRow
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.paging import PageQuery, paginate


def newest(session: Session) -> HeadRow | None:
    """Return the newest statement, or None."""
    return session.exec(select(HeadRow).order_by(col(HeadRow.number).desc()).limit(1)).first()


def rows_after(session: Session, last: int) -> int:
    """Return how many rows the log has beyond one."""
    return session.exec(
        select(func.count()).select_from(EventRow).where(col(EventRow.id) > last)
    ).one()


def page(session: Session, query: PageQuery) -> tuple[Sequence[HeadRow], str]:
    """Return one page of statements, oldest first unless it is asked otherwise.

    Raises:
        InvalidInputError: A bad order or token.
    """
    sortable = {"number": HeadRow.number}
    return paginate(session, select(HeadRow), query, sortable, HeadRow.number, default="number")
