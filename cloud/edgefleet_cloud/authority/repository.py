"""SQL of the certificates."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CursorResult, select, update
from sqlmodel import Session, col

from edgefleet_cloud.authority.tables import CertificateRow


def revoke(session: Session, device_id: str, now: str, reason: str) -> int:
    """Revoke every certificate of a device that still counts; return how many there were."""
    result = session.execute(
        update(CertificateRow)
        .where(col(CertificateRow.device) == device_id, col(CertificateRow.revoked).is_(None))
        .values(revoked=now, reason=reason)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount


def revoked(session: Session, now: str) -> Sequence[CertificateRow]:
    """Return the revoked certificates that have not expired, by serial number."""
    rows = select(CertificateRow).where(
        col(CertificateRow.revoked).is_not(None), col(CertificateRow.not_after) > now
    )
    return session.scalars(rows.order_by(col(CertificateRow.serial))).all()


def of_device(session: Session, device_id: str) -> Sequence[CertificateRow]:
    """Return a device's certificates, newest first."""
    rows = select(CertificateRow).where(col(CertificateRow.device) == device_id)
    return session.scalars(
        rows.order_by(col(CertificateRow.not_after).desc(), col(CertificateRow.serial))
    ).all()
