"""Around every request: its id, safe headers, and a problem instead of a traceback."""

from __future__ import annotations

import logging

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgefleet_cloud import http_errors
from edgefleet_shared.identifiers import new_id

_log = logging.getLogger(__name__)
_UPLOAD = "/v1/uploads/"
_FEATURES = ("accelerometer", "autoplay", "camera", "display-capture", "fullscreen", "geolocation",
             "gyroscope", "microphone", "midi", "payment", "usb")  # fmt: skip
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _FEATURES),
    "Cache-Control": "no-store",
}
"""After the OWASP cheat sheets for REST and for headers; a route may set its own."""
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}


class BodyLimit:
    """Refuses bodies that are longer than any request needs; uploads have a limit of their own."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or (scope["method"] == "PATCH" and _UPLOAD in scope["path"]):
            await self._app(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLong
            return message

        try:
            await self._app(scope, count, send)
        except _TooLong:
            response = http_errors.problem(
                scope["state"]["request_id"],
                413,
                "too_large",
                f"The request's body is longer than {self._max_bytes} bytes.",
                hint="Large content goes through POST /v1/uploads.",
            )
            await response(scope, receive, send)


class _TooLong(BaseException):
    """Not an Exception: the framework would take it for a malformed body."""


class Outermost:
    """Gives requests an id, responses their safe headers, and the unexpected a status 500.

    Args:
        app: What it stands around.
        https: Whether callers reach it by https, which browsers are then told to insist on.
    """

    def __init__(self, app: ASGIApp, *, https: bool = False) -> None:
        self._app = app
        self._headers = {**_HEADERS, **(_HSTS if https else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("Request %s %s failed", request_id, scope["path"])
            if started:
                raise
            response = http_errors.problem(
                request_id,
                500,
                "internal",
                "The fleet manager failed on this request.",
                hint=f"Its log tells more under request {request_id}.",
            )
            await response(scope, receive, send_with_headers)
