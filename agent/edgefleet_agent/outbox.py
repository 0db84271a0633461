"""What must reach the fleet manager, kept on disk until it did, within a byte budget.

Each stream numbers its items without a gap; a number is never given twice, even across a crash. An
item that the budget drops leaves a hole and is counted, so that lost and absent differ.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.messages import Stream

BATCH_BYTES = 48 * 1024
ITEM_BYTES = 32 * 1024
STREAMS: tuple[Stream, ...] = ("receipts", "events", "telemetry")
"""In the order in which they are sent; the budget drops in the opposite order."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
  stream TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


class Pending(NamedTuple):
    """The oldest items of a stream that fit one batch."""

    seqs: list[int]
    items: list[dict[str, Any]]
    dropped: int


class Outbox:
    """The streams on disk; every method may be called from any thread.

    Args:
        path: `<state_dir>/outbox.db`.
        max_bytes: Budget for the items' bodies.

    Attributes:
        lost: Whether the file was damaged and had to be begun anew; numbers then jump far ahead.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self.lost = False
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            self.lost = True
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(f"{path}{suffix}.damaged")
            self._db = _open(path)
            # Old numbers are unknown; milliseconds since the epoch are beyond any of them.
            first = time.time_ns() // 1_000_000
            for name in (*STREAMS, "reported"):
                self._db.execute("INSERT INTO counters VALUES (?, ?)", (name, first))
        self._bytes = self._count_bytes()

    def add(
        self, stream: Stream, *items: msgspec.Struct, note: tuple[str, bytes] | None = None
    ) -> None:
        """Append items durably, and in the same transaction a note beside them.

        Raises:
            UnavailableError: The disk does not take it (code `outbox_full`).
        """
        with self._transaction():
            for item in items:
                self._append(stream, strict_json.encode(item))
            if note:
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", note)
            self._fit()

    def note(self, name: str) -> bytes | None:
        """Return a note, or None."""
        with self._lock:
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def next_number(self, name: str) -> int:
        """Return the next number of a counter, durably used up.

        Raises:
            UnavailableError: The disk does not take it.
        """
        with self._transaction():
            return self._next(name)

    def pending(self, stream: Stream) -> Pending | None:
        """Return the oldest items of a stream that fit a batch, or None if there are none."""
        seqs: list[int] = []
        items: list[dict[str, Any]] = []
        size = 0
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, body FROM items WHERE stream = ? ORDER BY seq LIMIT 500", (stream,)
            )
            for seq, body in rows:
                size += len(body) + 24
                if items and size > BATCH_BYTES * 3 // 5:  # the envelope's base64 adds a third
                    break
                seqs.append(seq)
                items.append(msgspec.json.decode(body))
            rows.close()
            dropped = self._value(f"dropped.{stream}")
        return Pending(seqs, items, dropped) if seqs else None

    def remove(self, stream: Stream, seqs: list[int]) -> None:
        """Forget items that the other side holds."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM items WHERE stream = ? AND seq = ?", [(stream, seq) for seq in seqs]
            )
            self._bytes = self._count_bytes()

    def counts(self) -> dict[str, int]:
        """Return how many items each stream holds."""
        with self._lock:
            rows = self._db.execute("SELECT stream, count(*) FROM items GROUP BY stream").fetchall()
        return dict(rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                    self._bytes = self._count_bytes()
                if isinstance(error, sqlite3.Error):
                    raise UnavailableError(
                        f"The outbox does not take it: {error}.",
                        code="outbox_full",
                        hint="Look at the disk that holds state_dir.",
                    ) from error
                raise

    def _append(self, stream: str, body: bytes) -> None:
        if len(body) > ITEM_BYTES:
            raise ValueError(f"an item of stream {stream} has {len(body)} bytes")
        self._db.execute("INSERT INTO items VALUES (?, ?, ?)", (stream, self._next(stream), body))
        self._bytes += len(body)

    def _fit(self) -> None:
        """Drop the oldest items until the budget holds: telemetry, then events, then receipts."""
        for stream in reversed(STREAMS):
            while self._bytes > self._max_bytes:
                row = self._db.execute(
                    "SELECT seq, length(body) FROM items WHERE stream = ? ORDER BY seq LIMIT 1",
                    (stream,),
                ).fetchone()
                if row is None:
                    break
                self._db.execute("DELETE FROM items WHERE stream = ? AND seq = ?", (stream, row[0]))
                self._next(f"dropped.{stream}")
                self._bytes -= row[1]

    def _next(self, name: str) -> int:
        row = self._db.execute(
            "INSERT INTO counters VALUES (?, 1) "
            "ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            (name,),
        ).fetchone()
        return int(row[0])

    def _value(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _count_bytes(self) -> int:
        row = self._db.execute("SELECT coalesce(sum(length(body)), 0) FROM items").fetchone()
        return int(row[0])


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -256")
        sound = db.execute("PRAGMA quick_check").fetchone() == ("ok",)
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    if not sound:
        db.close()
        raise sqlite3.DatabaseError("quick_check failed")
    return db
