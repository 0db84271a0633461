"""HTTP/1.1 on one connection: parse, one request at a time, answer in order.

Content-Length bodies only: a chunked body is refused, because nobody needs one here and parsers of
chunks have been the hole in other servers.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from edgefleet_agent.gateway.fast import Connection as FastConnection
from edgefleet_agent.gateway.intake import MAX_CONNECTIONS, MAX_WAITING, Intake
from edgefleet_agent.gateway.messages import HEAD_MAX_BYTES, Request, error, inference, status_line
from edgefleet_agent.ipc import fast, frames, loans

if TYPE_CHECKING:
    from edgefleet_agent.gateway.endpoints import Endpoints

_LINGER_S = 2.0
_RETURNS_MAX = 3
"""A connection that a worker has given back so often stays here."""
_BACK = {frames.ODD: 1, frames.BLOCKED: 1, frames.SLOW: 1, frames.LARGE: _RETURNS_MAX}
"""What each reason for giving a connection back counts."""


class Connection(asyncio.Protocol):
    """One client. Implements `pending.Asker` and `lending.Borrower`."""

    client = 0

    def __init__(self, endpoints: Endpoints, intake: Intake) -> None:
        self._endpoints = endpoints
        self._intake = intake
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request] = deque()
        self._busy = False  # a request is with the endpoints
        self._pumping = False
        self._keep_alive = True  # of the request that is answered next
        self._bodiless = False  # it is HEAD
        self._refusing = False  # nothing more is read from this client
        self._ended = False  # the client has sent its last byte
        self._blocked = False  # the client does not read its answers
        self._head_bytes = 0
        self._fresh = True  # nothing has come yet
        self._request = Request()
        self._parts: list[bytes] = []
        self._partial = 0  # bytes in parts
        self._answering = 0  # bytes of the body that is with the endpoints
        self._unfinished = False  # a request has begun to come
        self._patience: asyncio.TimerHandle | None = None
        self._target = b""  # of the last request
        self._streak = 0  # inferences in a row with that target, all answered 200
        self._lent = False  # a worker reads and answers
        self._lent_for = ""  # the model it was lent for, ever
        self._returns = 0
        self._closing = False
        self._begun_ns = 0  # of the next request, if a worker died on it
        self._key = os.urandom(8)
        self._who = b""  # what the request that is answered next says of its client

    # ------------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless there are too many already."""
        if len(self._endpoints.connections) >= MAX_CONNECTIONS:
            self._refusing = True
            cast("asyncio.Transport", transport).abort()
            return
        self._transport = cast("asyncio.Transport", transport)
        self._endpoints.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; an answer that comes later goes nowhere."""
        del exc
        self._transport = None
        self._lent = False
        self._drop()
        self._endpoints.connections.discard(self)

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are still due."""
        self._ended = True
        return self._busy or bool(self._queue)

    def pause_writing(self) -> None:
        """Start no request whose answer nobody reads."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        """Parse; refuse what is not HTTP/1.x, but for the first byte of the fast path."""
        if self._refusing:
            return
        if self._fresh:
            self._fresh = False
            if data[0] == fast.MAGIC and self._hand_over(data):
                return
        if not self._request.headers_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "Upgrades are not supported.", "bad_request")
        except httptools.HttpParserError as problem:
            if not self._refusing:
                self._refuse(400, f"The request is not HTTP: {problem}.", "bad_request")
        if not self._request.headers_done and self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(431, "The request's head is too long.", "head_too_large")
        if self._unfinished != (self._patience is not None):
            self._be_patient()
        self._pump()
        if self._queue and self._transport is not None:
            self._transport.pause_reading()

    def _hand_over(self, data: bytes) -> bool:
        """Let the fast path go on with this socket; False if it cannot carry descriptors."""
        transport = self._transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if transport is None or sock is None or sock.family != socket.AF_UNIX:
            return False
        self._refusing = True
        own = socket.socket(fileno=os.dup(sock.fileno()))
        transport.abort()
        self._endpoints.connections.discard(self)
        FastConnection(own, self._endpoints, self._intake, data)
        return True

    # ------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        """Start a request."""
        self._request = Request()
        self._unfinished = True
        if self._patience is not None:  # it ran for the request before
            self._patience.cancel()
            self._patience = None

    def on_url(self, url: bytes) -> None:
        """Take the target, which may come in parts."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the headers that matter."""
        self._request.header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse early what would be refused late."""
        request = self._request
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.headers_done = True
        self._head_bytes = 0
        if refusal := request.refusal(self._intake.max_body):
            self._refuse(*refusal)
        elif self._parser.should_upgrade():  # now: the parser calls it complete next
            self._refuse(400, "Upgrades are not supported.", "bad_request")
        elif request.expects_continue and self._transport is not None and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, if all clients together do not hold too much."""
        if self._refusing:
            return
        self._parts.append(body)
        self._partial += len(body)
        self._intake.held += len(body)
        if self._intake.held > self._intake.max_held:
            self._refuse(503, "Too many large requests are open; try again later.", "busy")

    def on_message_complete(self) -> None:
        """Queue the request."""
        if self._refusing:
            return
        parts = self._parts
        self._request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._request.begun_ns, self._begun_ns = self._begun_ns, 0
        self._queue.append(self._request)
        self._intake.waiting += 1
        self._request = Request()
        self._parts = []
        self._partial = 0
        self._unfinished = False
        if self._intake.waiting > MAX_WAITING and len(self._queue) > 1:
            self._drop()
            self._refuse(503, "Too many requests are open; try again later.", "busy")

    # ------------------------------------------------------------------- answers

    def _refuse(self, status: int, text: str, code: str) -> None:
        """Queue a refusal after which the connection closes; read no more."""
        if self._refusing:
            return
        self._refusing = True
        self._drop_partial()
        refused = Request()
        refused.keep_alive = False
        refused.refused = (status, text, code)
        self._queue.append(refused)
        self._intake.waiting += 1
        self._request.headers_done = True

    def _drop_partial(self) -> None:
        """Forget the request that has not come whole."""
        self._intake.held -= self._partial
        self._parts = []
        self._partial = 0
        self._unfinished = False

    def _drop(self) -> None:
        """Forget everything that is not with the endpoints."""
        self._drop_partial()
        self._intake.held -= sum(len(request.body) for request in self._queue)
        self._intake.waiting -= len(self._queue)
        self._queue.clear()
        self._be_patient()

    def _be_patient(self) -> None:
        """Give a request that has begun so much time to come whole."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._unfinished:
            loop, patience_s = asyncio.get_running_loop(), self._intake.patience_s
            self._patience = loop.call_later(patience_s, self._too_slow)

    def _too_slow(self) -> None:
        self._patience = None
        if self._busy or self._queue:  # not its fault: nothing is read from it meanwhile
            self._be_patient()
            return
        self._refuse(408, "The request did not come whole in time.", "request_timeout")
        self._pump()

    def _pump(self) -> None:
        """Start queued requests, one after the other, as long as each is answered at once."""
        if self._pumping or self._lent:
            return
        self._pumping = True
        while self._queue and not self._busy and not self._blocked:
            request = self._queue.popleft()
            self._intake.waiting -= 1
            self._busy = True
            self._keep_alive = request.keep_alive
            self._answering = len(request.body)
            self._bodiless = request.method == b"HEAD"
            self._who = request.client
            self._note(request)
            if request.refused:
                status, text, code = request.refused
                self.send(error(status, text, code))
            else:
                self._endpoints.handle(request, self)
        self._pumping = False
        if not self._queue and not self._refusing and self._transport is not None:
            self._transport.resume_reading()

    # ------------------------------------------------------------------- lending

    def _note(self, request: Request) -> None:
        """Count requests in a row that a worker could as well answer itself."""
        if request.target != self._target or request.timeout_ns or request.refused:
            self._target, self._streak = request.target, 0
            if self._lent_for and self._endpoints.of_another_model(request, self._lent_for):
                self._keep_alive = False  # the worker it was lent to may still have a copy

    def _offer(self) -> None:
        """Lend the connection, if it still is between two requests and all has been sent."""
        transport = self._transport
        if transport is None or self._busy or self._queue or self._unfinished or self._ended:
            return
        if self._refusing or self._lent or transport.get_write_buffer_size():
            return
        if lent_for := self._endpoints.offer(self, self._target):
            transport.pause_reading()
            self._lent, self._lent_for = True, lent_for
        self._streak = 0  # if it was not taken, the next offer comes as late

    def fileno(self) -> int:
        """Return the connection's descriptor, -1 once it is closed."""
        if self._transport is None or self._transport.is_closing():
            return -1
        return int(self._transport.get_extra_info("socket").fileno())

    def resume(self, left: loans.Left, reason: int) -> None:
        """Go on where the worker stopped."""
        self._lent = False
        self._returns += _BACK.get(reason, 0)
        transport = self._transport
        if transport is None:
            return
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._head_bytes = 0
        if left.unsent:
            transport.write(left.unsent)
        if self._closing and not left.begun_ns:
            transport.close()
            return
        self._begun_ns = left.begun_ns
        if left.unread:
            self.data_received(left.unread)
        self._pump()

    def abandon(self) -> None:
        """Close at once: nobody knows what the client has been told."""
        self._lent = False
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------- answers
    def who(self) -> bytes:
        """Return the client as its request names it, or else this connection."""
        return self._who or self._key

    def answer(self, status: int, body: bytes, json_length: int, retry_after_s: int = 0) -> None:
        """Send the answer to an inference request."""
        if status == 200:
            self._streak += 1
            self.send(inference(body, json_length))
            if self._streak >= self._endpoints.lend_after > 0 and self._returns < _RETURNS_MAX:
                asyncio.get_running_loop().call_soon(self._offer)
        else:
            self._streak = 0
            extra = b"Retry-After: %d\r\n" % retry_after_s if retry_after_s else b""
            self.send(status_line(status, len(body), extra) + body)

    def send(self, data: bytes) -> None:
        """Send a whole answer to the request in progress."""
        self._busy = False
        self._intake.held -= self._answering
        self._answering = 0
        transport = self._transport
        if transport is None:
            return
        if self._bodiless:
            data = data[: data.index(b"\r\n\r\n") + 4]
        if not self._keep_alive:
            data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        transport.write(data)
        if not self._keep_alive:
            self._close_gently()
        elif self._ended and not self._queue:
            transport.close()
        elif self._queue:
            self._pump()

    def _close_gently(self) -> None:
        """Close so that the client can still read: a close with unread input would reset it."""
        self._refusing = True
        self._drop()
        transport = self._transport
        if transport is None:
            return
        if transport.can_write_eof() and not self._ended:
            transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.close)
        else:
            transport.close()

    def close_when_idle(self) -> None:
        """For shutting down: close now, or after the answer in progress, also a worker's."""
        self._keep_alive = False
        self._closing = True
        if not self._busy and not self._lent and self._transport is not None:
            self._transport.close()
