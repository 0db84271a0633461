"""SQL of the certificates."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import CursorResult, select, update
from sqlmodel import Session, col

from edgefleet_cloud.authority.tables import CertificateRow

SUPERSEDED = "superseded"


def revoke(session: Session, device_id: str, now: str, reason: str) -> int:
    """Revoke every certificate of a device that still counts; return how many there were."""
    result = session.execute(
        update(CertificateRow)
        .where(
            col(CertificateRow.device) == device_id,
            col(CertificateRow.revoked).is_(None) | (col(CertificateRow.revoked) > now),
        )
        .values(revoked=now, reason=reason)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount


def supersede(
    session: Session, device_id: str, keep: str, since: str, *, sessions_only: bool = False
) -> None:
    """Revoke, from some time on, a device's certificates for other keys than one.

    Args:
        session: The transaction.
        device_id: The device.
        keep: Digest of the key whose certificates stay.
        since: When, perhaps a time to come.
        sessions_only: Whether only those for TLS alone go.
    """
    query = update(CertificateRow).where(
        col(CertificateRow.device) == device_id,
        col(CertificateRow.key) != keep,
        col(CertificateRow.revoked).is_(None),
    )
    if sessions_only:
        query = query.where(col(CertificateRow.session).is_(True))
    session.execute(query.values(revoked=since, reason=SUPERSEDED))


def newest(session: Session, device_id: str) -> CertificateRow | None:
    """Return the certificate that a device got last, revoked or not; or None."""
    rows = select(CertificateRow).where(col(CertificateRow.device) == device_id)
    return session.scalars(
        rows.order_by(col(CertificateRow.not_after).desc(), col(CertificateRow.serial)).limit(1)
    ).first()


def revoked(session: Session, now: str) -> Sequence[CertificateRow]:
    """Return the revoked certificates that have not expired, by serial number."""
    rows = select(CertificateRow).where(
        col(CertificateRow.revoked) <= now, col(CertificateRow.not_after) > now
    )
    return session.scalars(rows.order_by(col(CertificateRow.serial))).all()


def of_device(session: Session, device_id: str) -> Sequence[CertificateRow]:
    """Return a device's certificates, newest first."""
    rows = select(CertificateRow).where(col(CertificateRow.device) == device_id)
    return session.scalars(
        rows.order_by(col(CertificateRow.not_after).desc(), col(CertificateRow.serial))
    ).all()
