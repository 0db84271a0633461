"""Reading uploads; every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from edgefleet_cloud.blobs.tables import UploadRow


def get_upload(session: Session, upload_id: str) -> UploadRow | None:
    """Return an upload, or None."""
    return session.get(UploadRow, upload_id)


def find_upload(session: Session, digest: str, size: int, state: str) -> UploadRow | None:
    """Return the newest upload of this digest and size in this state, or None."""
    return session.exec(
        select(UploadRow)
        .where(UploadRow.digest == digest, UploadRow.size == size, UploadRow.state == state)
        .order_by(col(UploadRow.created).desc())
    ).first()


def begun_before(session: Session, time: str) -> Sequence[UploadRow]:
    """Return every upload older than `time`."""
    return session.exec(select(UploadRow).where(UploadRow.created < time)).all()
