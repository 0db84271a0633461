"""Appends rows to the log: numbered without gaps and chained by hash, in the order of commits."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text
from sqlmodel import Session

from edgefleet_cloud.events.tables import EventRow
from edgefleet_shared.audit import BEGINNING, row_hash

# Any number that nobody else locks by: the first bytes of sha256("edgefleet.audit").
_LOCK = 0xA787_DFA9
_NEWEST = text("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1")


def append(session: Session, rows: Iterable[EventRow]) -> None:
    """Give rows their numbers and hashes, and write them; the transaction commits next.

    SQLite has one writer at a time. PostgreSQL has many: they queue here, at their very end, each
    seeing the row that the one before committed.
    """
    lock(session)
    number, previous = newest(session)
    for row in rows:
        number += 1
        row.id = number
        row.hash = previous = row_hash(previous, row.entry())
        session.add(row)
    session.flush()


def lock(session: Session) -> None:
    """Let nobody else append until this transaction ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def newest(session: Session) -> tuple[int, str]:
    """Return number and hash of the newest row; of an empty log 0 and the beginning."""
    found = session.connection().execute(_NEWEST).first()
    return (found.id, found.hash) if found else (0, BEGINNING)
