"""Cursor paging: one page is a WHERE and a LIMIT, and a token says where the next one begins."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import InstrumentedAttribute
from sqlmodel import Session

from edgefleet_shared.errors import InvalidInputError

T = TypeVar("T")


class PageOf(BaseModel, Generic[T]):
    """One page of a list; an empty `next_page_token` says that it was the last."""

    items: list[T]
    next_page_token: str = ""


class PageQuery(NamedTuple):
    """What a caller asks of a list."""

    page_size: int = 50
    page_token: str = ""
    filter: str = ""
    order_by: str = ""


def _page_query(
    page_size: Annotated[int, Query(ge=1, le=500, description="Items a page.")] = 50,
    page_token: Annotated[str, Query(description="`next_page_token` of the page before.")] = "",
    filter: Annotated[  # noqa: A002 - the parameter's name in the API
        str, Query(max_length=2000, description="For example `labels.site == 'berlin'`.")
    ] = "",
    order_by: Annotated[str, Query(description="A field, or a field and ` desc`.")] = "",
) -> PageQuery:
    return PageQuery(page_size, page_token, filter, order_by)


Paging = Annotated[PageQuery, Depends(_page_query)]
"""Parameter type of an endpoint that answers a list."""

# SQLModel types a column as its value, so a table of columns can only say Any.
Sortable = Mapping[str, Any]


def paginate(
    session: Session,
    statement: Select[Any],
    query: PageQuery,
    sortable: Sortable,
    unique: Any,
    default: str = "created",
) -> tuple[Sequence[Any], str]:
    """Return the rows of one page and the token of the next, or ''.

    Args:
        session: Where to ask.
        statement: SELECT of one entity, filtered; neither ordered nor limited.
        query: The caller's wishes.
        sortable: Columns by the name that `order_by` may use; none may be null.
        unique: Column that decides between equals.
        default: `order_by` where the caller gives none.

    Raises:
        InvalidInputError: code `order_by` or `page_token` (garbled, or of another list).
    """
    column, descending = _order(query.order_by or default, sortable)
    keys: list[InstrumentedAttribute[Any]] = [column] if column is unique else [column, unique]
    scope = f"{unique}|{query.filter}|{query.order_by}"
    if query.page_token:
        after = _read_token(query.page_token, scope, len(keys))
        statement = statement.where(_beyond(keys, after, descending=descending))
    statement = statement.order_by(*(k.desc() if descending else k.asc() for k in keys))
    rows = session.scalars(statement.limit(query.page_size + 1)).all()
    if len(rows) <= query.page_size:
        return rows, ""
    rows = rows[: query.page_size]
    return rows, _write_token([getattr(rows[-1], k.key) for k in keys], scope)


def _order(text: str, sortable: Sortable) -> tuple[InstrumentedAttribute[Any], bool]:
    name, _, direction = text.partition(" ")
    if name not in sortable or direction not in {"", "asc", "desc"}:
        raise InvalidInputError(
            f"This list cannot be ordered by {text[:80]!r}.",
            code="order_by",
            hint=f"Fields: {', '.join(sortable)}; add ' desc' for the reverse.",
        )
    return sortable[name], direction == "desc"


def _beyond(
    keys: Sequence[InstrumentedAttribute[Any]], after: Sequence[Any], *, descending: bool
) -> ColumnElement[bool]:
    first, value = keys[0], after[0]
    beyond: ColumnElement[bool] = first < value if descending else first > value
    if len(keys) == 1:
        return beyond
    return or_(beyond, and_(first == value, _beyond(keys[1:], after[1:], descending=descending)))


def _write_token(values: list[Any], scope: str) -> str:
    body = json.dumps(values, separators=(",", ":")).encode()
    return _text(_checksum(body, scope) + body)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _read_token(token: str, scope: str, count: int) -> list[Any]:
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _bad_token() from error
    # The second half refuses another spelling of the same bytes.
    if data[:8] != _checksum(data[8:], scope) or _text(data) != token:
        raise _bad_token()
    values: list[Any] = json.loads(data[8:])
    if len(values) != count:
        raise _bad_token()
    return values


def _bad_token() -> InvalidInputError:
    return InvalidInputError(
        "The page_token does not belong to this list.",
        code="page_token",
        hint="Send next_page_token unchanged, with the same filter and order_by.",
    )


def _checksum(body: bytes, scope: str) -> bytes:
    """Tell a token of another list or query from ours; nothing in it is worth forging."""
    return hashlib.sha256(scope.encode() + b"\0" + body).digest()[:8]
