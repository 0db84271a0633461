"""What endpoints are given: services by type, the database, the caller's name, ETag checks."""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Header, Request, Response
from sqlmodel import Session

from edgefleet_cloud.database import Database, give_reason
from edgefleet_cloud.errors import PreconditionError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.reasons import decode_reason

T = TypeVar("T")


class Parts:
    """The services that endpoints may ask for, by class; filled by `compose`."""

    def __init__(self, *services: object) -> None:
        self._by_class = {type(service): service for service in services}

    def get(self, kind: type[T]) -> T:
        """Return the one service of a class."""
        return cast("T", self._by_class[kind])


def part(kind: type[T]) -> Callable[[Request], Coroutine[Any, Any, T]]:
    """Return a dependency that finds a service: `Models = Annotated[X, Depends(part(X))]`."""

    async def find(request: Request) -> T:
        parts: Parts = request.app.state.parts
        return parts.get(kind)

    return find


class RequestDatabase:
    """The database as one request sees it: its first write also claims its Idempotency-Key.

    Args:
        database: The server's.
        claim: Claims the key in the first writing transaction.
        reason: Why the caller asks; the events of every transaction take it up.
    """

    def __init__(
        self, database: Database, claim: Callable[[Session], None] | None, reason: str = ""
    ) -> None:
        self._database = database
        self._claim = claim
        self._reason = reason

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that must not write."""
        with self._database.read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session; committed at the end, rolled back if an exception leaves the block."""
        with self._database.write() as session:
            give_reason(session, self._reason)
            if self._claim:
                self._claim(session)
                self._claim = None
            yield session


ReasonHeader = Annotated[
    str,
    Header(
        alias="Edgefleet-Reason",
        description="Why, for the record: at most 500 characters, UTF-8, percent-encoded.",
    ),
]


async def _request_database(request: Request, reason: ReasonHeader = "") -> RequestDatabase:
    parts: Parts = request.app.state.parts
    claim = getattr(request.state, "claim", None)
    return RequestDatabase(parts.get(Database), claim, decode_reason(reason))


async def _actor(request: Request) -> str:
    return str(getattr(request.state, "actor", ""))


Db = Annotated[RequestDatabase, Depends(_request_database)]
"""Parameter type: the database of this request."""

Actor = Annotated[str, Depends(_actor)]
"""Parameter type: who asks, for example `token/admin`; '' on routes without a token."""

IfMatch = Annotated[str | None, Header(alias="If-Match", description="ETag of the state you saw.")]
"""Parameter type of PUT and PATCH endpoints."""


def set_etag(response: Response, revision: int) -> None:
    """Give a response the ETag of a row's revision."""
    response.headers["ETag"] = f'"{revision}"'


def check_match(if_match: str | None, revision: int) -> None:
    """Check that the caller saw the present revision.

    Raises:
        PreconditionError: No If-Match (428), or another revision's (412).
    """
    if if_match is None:
        raise PreconditionError(
            "This request needs If-Match.",
            code="precondition_required",
            hint="GET the resource first and send its ETag back.",
        )
    tags = {tag.strip() for tag in if_match.split(",")}
    if "*" not in tags and f'"{revision}"' not in tags:
        raise PreconditionError(
            "Somebody changed the resource since you read it.",
            hint="GET it again, decide again, send its new ETag.",
        )


def decode_base64(text: str, what: str) -> bytes:
    """Return the bytes of a base64 text.

    Raises:
        InvalidInputError: It is none (code `base64`); `what` says what it was meant to be.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidInputError(
            f"{what[:100]} is not base64.",
            code="base64",
            hint="Send the file's exact bytes, encoded with the standard alphabet.",
        ) from error
