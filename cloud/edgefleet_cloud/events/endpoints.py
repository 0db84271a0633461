"""GET /v1/events: a page of the log, or the log as it grows (server-sent events)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.auth.guards import Scoped, Stands, allow
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.filters import Node
from edgefleet_cloud.paging import PageOf, Paging
from edgefleet_cloud.web import Db, RequestDatabase, part

STREAM = "text/event-stream"
CHUNK = 200

router = APIRouter(prefix="/v1/events", tags=["events"])
Log = Annotated[EventLog, Depends(part(EventLog))]


class Event(BaseModel):
    """One thing that happened."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 42,
                    "ts": "2026-01-31T12:00:00.000Z",
                    "type": "device.enrolled",
                    "step": "report",
                    "subject": "devices/cam-1",
                    "actor": "devices/cam-1",
                    "message": "cam-1 enrolled.",
                    "data": {},
                    "reason": "",
                    "before": {"state": "new"},
                    "after": {"state": "enrolled"},
                    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                }
            ]
        }
    )

    id: int
    ts: str
    type: str
    step: str
    subject: str
    actor: str
    message: str
    data: dict[str, Any]
    reason: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


@router.get(
    "",
    response_model=PageOf[Event],
    responses={200: {"content": {STREAM: {"schema": {"type": "string"}}}}},
    dependencies=[allow("events.read")],
)
async def read_events(
    request: Request,
    log: Log,
    db: Db,
    scope: Scoped,
    stands: Stands,
    query: Paging,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response | PageOf[Event]:
    """Answer a page, oldest first, or with `Accept: text/event-stream` follow the log.

    The stream begins after `Last-Event-ID` (0: from the first event), without it with what
    happens next; `filter` holds for both, `page_size` and `page_token` for pages alone. It ends
    when the caller's token does.
    """
    node = log.parse(query.filter)
    if STREAM not in request.headers.get("accept", ""):
        return await run_in_threadpool(_page, log, db, query, scope)
    position = await run_in_threadpool(_position, log, db, last_event_id)
    return StreamingResponse(
        follow(log, Reader(db, scope, stands), node, position),
        media_type=STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class Reader(NamedTuple):
    """Who follows the log: their database and scope, and whether their token still holds."""

    db: RequestDatabase
    scope: Scope = None
    stands: Callable[[], bool] = lambda: True


async def follow(log: EventLog, reader: Reader, node: Node | None, last: int) -> AsyncIterator[str]:
    """Yield the stream's text from after event `last`, until the log's feed or the token ends."""
    with log.feed.listen() as news:
        yield "retry: 1000\n\n"
        while not log.feed.closed:
            news.clear()  # before reading: what comes while we read rings again
            if not await run_in_threadpool(reader.stands):
                return
            rows, last = await run_in_threadpool(_after, log, reader, last, node)
            for row in rows:
                yield f"id: {row.id}\ndata: {_event(row).model_dump_json()}\n\n"
            if len(rows) < CHUNK and not await _within(news, log.feed.keep_alive_s):
                yield ": still here\n\n"


async def _within(news: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _page(log: EventLog, db: RequestDatabase, query: Paging, scope: Scope) -> PageOf[Event]:
    with db.read() as session:
        rows, token = log.page(session, query, scope)
    return PageOf(items=[_event(row) for row in rows], next_page_token=token)


def _position(log: EventLog, db: RequestDatabase, last_event_id: str | None) -> int:
    with db.read() as session:
        return log.position(session, last_event_id)


def _after(
    log: EventLog, reader: Reader, last: int, node: Node | None
) -> tuple[Sequence[EventRow], int]:
    with reader.db.read() as session:
        return log.after(session, last, node, CHUNK, reader.scope)


def _event(row: EventRow) -> Event:
    return Event(**row.model_dump())
