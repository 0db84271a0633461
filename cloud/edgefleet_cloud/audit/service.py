"""Signs the head of the log: at the start and the end, and each hour that brought change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sqlmodel import Session

from edgefleet_cloud import durable
from edgefleet_cloud.audit import repository
from edgefleet_cloud.audit.tables import HeadRow
from edgefleet_cloud.database import Database
from edgefleet_cloud.events import chain
from edgefleet_cloud.paging import PageQuery
from edgefleet_cloud.periodic import Periodic
from edgefleet_cloud.ports import Clock
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.audit import HEAD_TYPE, Head, head_digest
from edgefleet_shared.times import format_time

INTERVAL_S = 3600.0

_log = logging.getLogger(__name__)


class HeadSigner(Protocol):
    """Has the fleet's audit key, perhaps."""

    def audit_key(self) -> str | None:
        """Return the id of the key that the owners let sign statements; None: there is none."""
        ...

    def sign_head(self, payload: bytes) -> bytes | None:
        """Return the DSSE envelope of a statement; None without a key."""
        ...


class Heads:
    """Makes, keeps and lists signed statements about the log.

    Args:
        fleet: The fleet's name.
        signer: Signs.
        folder: Gets a copy of each statement as a file, to be shipped elsewhere.
        clock: Dates them.
    """

    def __init__(self, fleet: str, signer: HeadSigner, folder: Path, clock: Clock) -> None:
        self._fleet = fleet
        self._signer = signer
        self._folder = folder
        self._clock = clock

    def sign(self, session: Session) -> HeadRow | None:
        """Sign the head of the log, unless the newest statement says it already by the same key."""
        chain.lock(session)
        last, head_hash = chain.newest(session)
        before = repository.newest(session)
        key = self._signer.audit_key()
        if key is None or last == 0 or (before and (before.last, before.key) == (last, key)):
            return None
        head = Head(
            v=1,
            fleet=self._fleet,
            number=before.number + 1 if before else 1,
            last=last,
            count=(before.count if before else 0)
            + repository.rows_after(session, before.last if before else 0),
            hash=head_hash,
            time=format_time(self._clock()),
            previous=head_digest(_payload(before)) if before else "",
        )
        envelope = self._signer.sign_head(strict_json.encode(head))
        if envelope is None:  # the key has just been taken away
            return None
        row = HeadRow(
            number=head.number,
            last=head.last,
            count=head.count,
            hash=head.hash,
            time=head.time,
            previous=head.previous,
            key=key,
            envelope=envelope,
        )
        session.add(row)
        return row

    def page(self, session: Session, query: PageQuery) -> tuple[Sequence[HeadRow], str]:
        """Return one page of statements and the token of the next; raises as `repository.page`."""
        return repository.page(session, query)

    def export(self, session: Session) -> None:
        """Write the newest statement into the folder, if it is not there."""
        row = repository.newest(session)
        if row is None:
            return
        path = self._folder / f"head-{row.number:08d}.json"
        if not path.exists():
            durable.make_folder(self._folder)
            durable.write(path, row.envelope)


class HeadKeeper:
    """A background service that has heads signed at its start, hourly, and at its end.

    Args:
        database: Where the log is.
        heads: Signs.
    """

    def __init__(self, database: Database, heads: Heads) -> None:
        self._database = database
        self._heads = heads
        self._periodic = Periodic("signing of the audit log", INTERVAL_S, self.look)

    def look(self) -> None:
        """Sign the head if there is something to say."""
        with self._database.write() as session:
            row = self._heads.sign(session)
        with self._database.read() as session:
            self._heads.export(session)
        if row:
            _log.info("Statement %s about the log is signed, up to row %s", row.number, row.last)

    async def start(self) -> None:
        """Start looking."""
        await self._periodic.start()

    async def stop(self) -> None:
        """Sign what the last hour brought; started first, it stops after all that writes."""
        await self._periodic.stop()
        try:
            await asyncio.to_thread(self.look)
        except Exception:  # noqa: BLE001 - the next start signs it
            _log.exception("The end of the audit log could not be signed")

    def facts(self) -> Mapping[str, str]:
        """Return nothing: the ready file need not speak of it."""
        return {}


def _payload(row: HeadRow) -> bytes:
    payload: bytes = dsse.read(row.envelope, HEAD_TYPE).payload
    return payload
