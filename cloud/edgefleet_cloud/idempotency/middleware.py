"""Gives a POST its claim, and keeps its answer before the caller sees it."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgefleet_cloud import http_errors
from edgefleet_cloud.database import Database
from edgefleet_cloud.idempotency.service import Claim, Repeated
from edgefleet_cloud.ports import Clock
from edgefleet_shared.errors import EdgeFleetError

_KEPT_HEADERS = ("content-type", "etag", "location")


class Idempotency:
    """Handles `Idempotency-Key` on every POST that has one."""

    def __init__(self, app: ASGIApp, database: Database, clock: Clock) -> None:
        self._app = app
        self._database = database
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        key = headers.get("idempotency-key")
        if key is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()
        what = f"POST {scope['path']}?{scope['query_string'].decode('latin-1')}\n".encode() + body
        try:
            claim = Claim(headers.get("authorization", ""), key, what, self._clock)
        except EdgeFleetError as error:
            response = http_errors.from_domain(str(request.state.request_id), error)
            await response(scope, receive, send)
            return
        scope["state"]["claim"] = claim
        answer = _Answer(body)
        await self._app(scope, answer.receive, answer.keep)
        if claim.made:
            await run_in_threadpool(self._remember, claim, answer)
        for message in answer.messages:
            await send(message)

    def _remember(self, claim: Claim, answer: _Answer) -> None:
        with self._database.write() as session:
            claim.answer(session, answer.status, answer.headers(), answer.body())


class _Answer:
    """Replays the request's body, and holds back the response until it is whole."""

    def __init__(self, request_body: bytes) -> None:
        self._request_body: bytes | None = request_body
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        body, self._request_body = self._request_body, None
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def keep(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    def headers(self) -> dict[str, str]:
        found = Headers(raw=self.messages[0]["headers"])
        return {name: found[name] for name in _KEPT_HEADERS if name in found}

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


async def show_again(_request: Request, repeated: Exception) -> Response:
    """Answer a repeated request as it was answered before."""
    assert isinstance(repeated, Repeated)
    headers = {**repeated.headers, "Idempotent-Replayed": "true"}
    return Response(repeated.body, repeated.status, headers)
