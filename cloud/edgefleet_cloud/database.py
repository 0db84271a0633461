"""The database: one engine, and sessions that either only read or write in one transaction."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlmodel import Session

from edgefleet_shared.errors import InvalidInputError, UnavailableError

_log = logging.getLogger(__name__)
_BUSY_S = 15
_CALLBACKS = "after_commit"
_REASON = "reason"
_LAST = "before_commit"


class Database:
    """Sessions over one URL.

    Every writer takes the write lock when it begins (SQLite: `BEGIN IMMEDIATE`), so what it reads
    is what it changes, and no transaction fails half-way because another was quicker.

    Args:
        url: A SQLAlchemy URL, for example `sqlite:////var/lib/edgefleet/fleet.db`.

    Raises:
        InvalidInputError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = create_engine(url)
        except (ArgumentError, ImportError) as error:
            raise InvalidInputError(
                f"database_url cannot be used: {error}.", code="configuration"
            ) from error
        if self.engine.dialect.name == "sqlite":
            _prepare_sqlite(self.engine)
        self._writers = self.engine.execution_options(edgefleet_write=True)
        # One process queues here, in order, instead of polling SQLite's lock.
        self._turn = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one state of the database and must not change it."""
        with _ReadSession(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session; commit it at the end, roll back if an exception leaves the block.

        Never nest one in another: a service is given its caller's session.

        Raises:
            UnavailableError: Another writer holds the lock for too long.
        """
        if not self._turn.acquire(timeout=_BUSY_S):
            raise UnavailableError("The database is busy.", code="database_busy")
        try:
            with Session(self._writers, expire_on_commit=False) as session:
                _begin(session)
                yield session
                for callback in session.info.pop(_LAST, ()):
                    callback(session)
                session.commit()
                callbacks = session.info.pop(_CALLBACKS, ())
        finally:
            self._turn.release()
        _call(callbacks)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def after_commit(session: Session, callback: Callable[[], None]) -> None:
    """Have `callback` called once the session's transaction is on disk, and only then.

    It runs in the writer's thread, outside the transaction, in order of registration; it may open
    sessions of its own. What it raises is logged: the commit stands.
    """
    session.info.setdefault(_CALLBACKS, []).append(callback)


def before_commit(session: Session, callback: Callable[[Session], None]) -> None:
    """Have `callback` called in the transaction, as the last thing before it is committed.

    What it raises rolls the transaction back. A lock that it takes is held for a moment only, and
    no other lock is asked for after it.
    """
    session.info.setdefault(_LAST, []).append(callback)


def give_reason(session: Session, reason: str) -> None:
    """Say why what happens in this transaction happens; events take it up."""
    session.info[_REASON] = reason


def reason_of(session: Session) -> str:
    """Return why this transaction happens, as far as anybody said; else ''."""
    return str(session.info.get(_REASON, ""))


class _ReadSession(Session):
    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Refuse to write: whoever adds here would lose it without a word."""
        if self.new or self.dirty or self.deleted:
            raise RuntimeError("A reading session was given something to write.")
        super().flush(objects)


def _begin(session: Session) -> None:
    try:
        session.connection()
    except OperationalError as error:
        reason = str(error.orig)
        if "locked" in reason:
            raise UnavailableError("The database is busy.", code="database_busy") from error
        raise UnavailableError(
            f"The database cannot be written: {reason}.",
            code="storage",
            hint="Is the disk full, or mounted read-only?",
        ) from error


def _call(callbacks: Sequence[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:  # noqa: BLE001 - whatever it is, the commit stands
            _log.exception("What should follow a commit failed")


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout = {_BUSY_S * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("edgefleet_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
