"""How far each partition was read, in our database; and who reads it, so that servers share them.

Claims are compare-and-swap by an etag, so they are safe on any database and between any number of
servers; a claim that is not renewed for long enough is free again. Servers compare one another's
clocks here: what they differ by must stay well below that time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, CursorResult, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from edgefleet_cloud.database import Database
from edgefleet_cloud.iothub.event_tables import IotHubPartitionRow

_Row = IotHubPartitionRow


class Source(NamedTuple):
    """Where the events of one hub are read.

    Attributes:
        hub: The hub's name in cloud.toml.
        namespace: Host of the Event Hubs-compatible endpoint.
        eventhub: The Event Hubs-compatible name.
        consumer_group: Ours there.
    """

    hub: str
    namespace: str
    eventhub: str
    consumer_group: str


class Position(NamedTuple):
    """An event of a partition: its offset and sequence number there, and when the hub took it."""

    offset: str
    sequence: int
    enqueued: str


class Checkpoints:
    """Claims and positions of one `Source`. Every method is one transaction; safe in any thread.

    Claims are dicts with the keys that azure-eventhub uses.

    Args:
        database: Where they lie.
        source: Of which hub.
        clock: Unix time in seconds.
    """

    def __init__(
        self, database: Database, source: Source, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._source = source
        self._clock = clock

    def claims(self) -> Sequence[dict[str, Any]]:
        """Return every claim, also those that are over."""
        with self._database.read() as session:
            found = session.scalars(select(_Row).where(*self._ours(), col(_Row.etag) != ""))
            return [self._claim(row) for row in found]

    def claim(self, wanted: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
        """Claim partitions, or renew or give back claims; return those that were not another's.

        Args:
            wanted: Each with `partition_id`, `owner_id` ('' gives it back) and the `etag` of the
                claim that it follows, if there was one.
        """
        now = self._clock()
        with self._database.write() as session:
            taken = [self._swap(session, dict(each), now) for each in wanted]
        return [each for each in taken if each is not None]

    def positions(self) -> Mapping[str, Position]:
        """Return up to where each partition was handled; one of which nothing was is left out."""
        with self._database.read() as session:
            rows = session.scalars(select(_Row).where(*self._ours())).all()
        return {
            row.partition: Position(row.offset, row.sequence, row.enqueued or "")
            for row in rows
            if row.offset is not None and row.sequence is not None
        }

    def save(self, partition: str, position: Position) -> None:
        """Say that everything up to `position` is on disk; an older position changes nothing."""
        further = or_(col(_Row.sequence).is_(None), col(_Row.sequence) < position.sequence)
        values = position._asdict()
        with self._database.write() as session:
            done = _changed(session, self._at(partition, further), values)
            if not done and session.get(_Row, (*self._source, partition)) is None:
                session.add(self._row(partition, **values))

    def forget(self, partition: str) -> None:
        """Begin a partition anew: its position means nothing any more."""
        gone = {"offset": None, "sequence": None, "enqueued": None}
        with self._database.write() as session:
            _changed(session, self._at(partition), gone)

    def _swap(self, session: Session, wanted: dict[str, Any], now: float) -> dict[str, Any] | None:
        partition, owner = str(wanted["partition_id"]), str(wanted["owner_id"])
        old, new = str(wanted.get("etag") or ""), secrets.token_hex(8)
        values = {"owner": owner, "etag": new, "modified": now}
        if not _changed(session, self._at(partition, col(_Row.etag) == old), values):
            if session.get(_Row, (*self._source, partition)) is not None:
                return None
            try:
                with session.begin_nested():
                    session.add(self._row(partition, **values))
            except IntegrityError:  # another server was quicker
                return None
        return {**wanted, "etag": new, "last_modified_time": now}

    def _ours(self) -> tuple[ColumnElement[bool], ...]:
        return tuple(
            col(getattr(_Row, name)) == value for name, value in self._source._asdict().items()
        )

    def _at(self, partition: str, *more: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        return (*self._ours(), col(_Row.partition) == partition, *more)

    def _row(self, partition: str, **values: Any) -> IotHubPartitionRow:
        return IotHubPartitionRow(**self._source._asdict(), partition=partition, **values)

    def _claim(self, row: IotHubPartitionRow) -> dict[str, Any]:
        return {
            "fully_qualified_namespace": row.namespace,
            "eventhub_name": row.eventhub,
            "consumer_group": row.consumer_group,
            "partition_id": row.partition,
            "owner_id": row.owner,
            "etag": row.etag,
            "last_modified_time": row.modified,
        }


def _changed(
    session: Session, where: tuple[ColumnElement[bool], ...], values: Mapping[str, Any]
) -> int:
    done = session.execute(update(_Row).where(*where).values(**values))
    assert isinstance(done, CursorResult)
    return done.rowcount
