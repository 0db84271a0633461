"""SQL of what devices sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, or_, select
from sqlmodel import Session, col

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.repository import among
from edgefleet_cloud.filters import Kind, Schema
from edgefleet_cloud.reports.tables import ReceiptRow, StreamRow, WindowRow

RECEIPTS = Schema(
    {
        "ts": Kind.TIME,
        "received": Kind.TIME,
        "device": Kind.TEXT,
        "slot": Kind.TEXT,
        "kind": Kind.TEXT,
        "deployment": Kind.TEXT,
        "from_digest": Kind.TEXT,
        "from_version": Kind.TEXT,
        "to_digest": Kind.TEXT,
        "to_version": Kind.TEXT,
        "failed": Kind.NUMBER,
        "trigger": Kind.TEXT,
    }
)
RECEIPT_COLUMNS = {name: getattr(ReceiptRow, name) for name in RECEIPTS.fields}


def stream(session: Session, device: str, enrollment: int, name: str) -> StreamRow:
    """Return the row of a stream, a new one if nothing came on it yet."""
    found = session.get(StreamRow, (device, enrollment, name))
    return found or StreamRow(device=device, enrollment=enrollment, stream=name)


def neighbours(session: Session, row: ReceiptRow) -> tuple[ReceiptRow | None, ReceiptRow | None]:
    """Return the receipts of the same device and slot just before and just after this one."""
    same = select(ReceiptRow).where(
        col(ReceiptRow.device) == row.device, col(ReceiptRow.slot) == row.slot
    )
    place = col(ReceiptRow.position)
    before = same.where(place < row.position).order_by(place.desc()).limit(1)
    after = same.where(place > row.position).order_by(place.asc()).limit(1)
    return session.scalars(before).first(), session.scalars(after).first()


def receipts(device: str, slot: str) -> Select[Any]:
    """Return the SELECT of receipts; '' means any."""
    query = select(ReceiptRow)
    if device:
        query = query.where(col(ReceiptRow.device) == device)
    if slot:
        query = query.where(col(ReceiptRow.slot) == slot)
    return query


def activations(at: str | None) -> Select[Any]:
    """Return the SELECT of the receipts after which something ran: ever, or at one time."""
    query = select(ReceiptRow).where(col(ReceiptRow.to_digest) != "")
    if at is None:
        return query
    return query.where(
        col(ReceiptRow.ts) <= at,
        or_(col(ReceiptRow.until).is_(None), col(ReceiptRow.until) > at),
    )


def windows(session: Session, query: Select[Any]) -> Iterator[WindowRow]:
    """Yield windows without holding all of them."""
    yield from session.scalars(query.execution_options(yield_per=500))


def gaps(session: Session, device: str, scope: Scope) -> Sequence[StreamRow]:
    """Return the streams of which something is missing; '' means any device in the scope."""
    query = select(StreamRow).where(
        or_(
            col(StreamRow.missing) > 0,
            col(StreamRow.dropped) > 0,
            col(StreamRow.beginnings) > 0,
        ),
        *among(StreamRow.device, scope),
    )
    if device:
        query = query.where(col(StreamRow.device) == device)
    return session.scalars(
        query.order_by(col(StreamRow.device), col(StreamRow.stream), col(StreamRow.enrollment))
    ).all()
