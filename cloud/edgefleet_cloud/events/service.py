"""The event log: recorded in the transaction that does what the event tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, false
from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.database import after_commit, before_commit, reason_of
from edgefleet_cloud.events import chain, repository
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.filters import Node, parse
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_cloud.ports import Clock, system_clock
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time

MESSAGE_CHARACTERS = 1000
_WAITING = "events.waiting"

Visible = Callable[[Node], ColumnElement[bool]]
"""Which events the holder of a scope may see; answered by a room that knows devices."""


def _nothing(_scope: Node) -> ColumnElement[bool]:
    return false()


class EventLog:
    """`ports.EventSink` over the events table.

    Args:
        feed: Rung after each commit that recorded an event.
        clock: Dates the events.
        visible: Knows which events are within a scope; without it none is.
    """

    def __init__(
        self, feed: EventFeed, clock: Clock = system_clock, visible: Visible = _nothing
    ) -> None:
        self.feed = feed
        self._clock = clock
        self._visible = visible

    def record(
        self,
        session: Session,
        *,
        type: str,  # noqa: A002 - the field's name in the API
        step: str,
        subject: str,
        message: str,
        actor: str = "system",
        data: Mapping[str, Any] | None = None,
        reason: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one event in the caller's transaction; it gets its number at the commit."""
        row = EventRow(
            ts=format_time(self._clock()),
            type=type,
            step=step,
            subject=subject,
            actor=actor or "system",
            message=message[:MESSAGE_CHARACTERS],
            data=_frozen(data or {}) or {},
            reason=reason or reason_of(session),
            before=_frozen(before),
            after=_frozen(after),
        )
        if (waiting := session.info.get(_WAITING)) is None:
            waiting = session.info[_WAITING] = []
            before_commit(session, lambda session: chain.append(session, waiting))
            after_commit(session, self.feed.ring)
        waiting.append(row)

    def page(
        self, session: Session, query: PageQuery, scope: Scope = None
    ) -> tuple[Sequence[EventRow], str]:
        """Return one page of the events within a scope, and the token of the next.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        sortable = {"id": EventRow.id}
        return paginate(
            session,
            repository.statement(self.parse(query.filter), self._within(scope)),
            query,
            sortable,
            EventRow.id,
            default="id",
        )

    def parse(self, text: str) -> Node | None:
        """Return the tree of a filter over events, or None for the empty one.

        Raises:
            InvalidInputError: code `invalid_filter`.
        """
        return parse(text, repository.SCHEMA) if text else None

    def position(self, session: Session, last_event_id: str | None) -> int:
        """Return after which number a stream begins: the caller's, or now.

        Raises:
            InvalidInputError: Not a number (code `last_event_id`).
        """
        if last_event_id is None:
            return repository.newest(session)
        if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
            raise InvalidInputError(
                "Last-Event-ID is not the number of an event.",
                code="last_event_id",
                hint="Send the last `id:` of the stream, 0 for all, or leave it out for new ones.",
            )
        return int(last_event_id)

    def after(
        self, session: Session, last: int, node: Node | None, limit: int, scope: Scope = None
    ) -> tuple[Sequence[EventRow], int]:
        """Return at most `limit` events after number `last`, and how far the log was read."""
        rows = repository.after(session, last, node, limit, self._within(scope))
        if len(rows) < limit:
            return rows, max(last, repository.newest(session))
        return rows, rows[-1].id or last

    def _within(self, scope: Scope) -> ColumnElement[bool] | None:
        return None if scope is None else self._visible(scope)


def _frozen(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy as it will be read again: what is hashed now must be what is found then.

    Numbers that JSON cannot say exactly become text.
    """
    if document is None:
        return None
    copy: dict[str, Any] = json.loads(
        json.dumps(document), parse_int=_small_int, parse_constant=str
    )
    return copy


def _small_int(digits: str) -> int | str:
    return int(digits) if len(digits) < 16 else digits
