"""SQL of the disconnections."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import case, func, select
from sqlmodel import Session, col

from edgefleet_cloud.authority.tables import CertificateRow
from edgefleet_cloud.broker.tables import DisconnectionRow


def pending(session: Session, now: str) -> Mapping[str, str]:
    """Return the revoked devices that the broker may still hold, with the time of revocation.

    A device that has a certificate that counts was enrolled or renewed since: its new connection
    has ended the old one, and must itself not be ended.
    """
    row = CertificateRow
    newest = func.max(col(row.revoked)).label("newest")
    counts = func.sum(case((col(row.revoked) <= now, 0), else_=1))
    revoked = (
        select(col(row.device), newest).group_by(col(row.device)).having(counts == 0).subquery()
    )
    done = DisconnectionRow
    query = (
        select(revoked.c.device, revoked.c.newest)
        .outerjoin(done, col(done.device) == revoked.c.device)
        .where(col(done.revoked).is_(None) | (col(done.revoked) < revoked.c.newest))
        .order_by(revoked.c.newest)
    )
    return {row.device: row.newest for row in session.execute(query)}


def finish(session: Session, device: str, revoked: str, now: str) -> None:
    """Note that a device's revocation has reached the broker."""
    row = session.get(DisconnectionRow, device)
    row = row or DisconnectionRow(device=device, revoked=revoked, done=now)
    row.revoked, row.done = revoked, now
    session.add(row)
