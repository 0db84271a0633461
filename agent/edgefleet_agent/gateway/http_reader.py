"""Requests out of bytes: what has come whole stands in a queue, what is refused does too.

Content-Length bodies only: a chunked body is refused, because nobody needs one here and parsers of
chunks have been the hole in other servers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import httptools

from edgefleet_agent.gateway.intake import MAX_WAITING, Intake
from edgefleet_agent.gateway.messages import HEAD_MAX_BYTES, Request

if TYPE_CHECKING:
    from edgefleet_agent.gateway.accounts import Account

_LARGE: Final = 64 * 1024
_BUSY: Final = "Too many large requests are open; try again later."


class Reader:
    """Takes one connection's requests apart; a parser's protocol.

    Args:
        intake: What all clients share.
        account: What this client holds.

    Attributes:
        queue: Requests that have come and are not begun.
        refusing: Whether nothing more is read from this client.
        unfinished: Whether a request has begun to come.
        begun: How many have begun to come.
        begun_ns: Of the next request, if a worker died on it.
        owes_continue: Whether the client waits for `100 Continue`, which is due before its answer
            and after all that came before it.
    """

    def __init__(self, intake: Intake, account: Account) -> None:
        self._intake = intake
        self._account = account
        self._parser = httptools.HttpRequestParser(self)
        self.queue: deque[Request] = deque()
        self.refusing = False
        self.unfinished = False
        self.begun = 0
        self.begun_ns = 0
        self.owes_continue = False
        self._head_bytes = 0
        self._request = Request()
        self._parts: list[bytes] = []
        self._reserved = 0  # bytes of the body that is coming

    @property
    def large(self) -> bool:
        """Whether the request that has begun to come is one that waits its turn outside."""
        return self._reserved > _LARGE

    def restart(self) -> None:
        """Begin at a request: somebody else has read meanwhile."""
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._head_bytes = 0

    def feed(self, data: bytes) -> None:
        """Parse; refuse what is not HTTP/1.x."""
        if not self._request.headers_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(400, "Upgrades are not supported.", "bad_request")
        except httptools.HttpParserError as problem:
            if not self.refusing:
                self.refuse(400, f"The request is not HTTP: {problem}.", "bad_request")
        if not self._request.headers_done and self._head_bytes > HEAD_MAX_BYTES:
            self.refuse(431, "The request's head is too long.", "head_too_large")

    # ------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        """Start a request."""
        self._request = Request()
        self.unfinished = True
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        """Take the target, which may come in parts."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the headers that matter."""
        self._request.header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse early what would be refused late, also a body for which there is no room."""
        request = self._request
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.headers_done = True
        self._head_bytes = 0
        if self.refusing:
            return
        if refusal := request.refusal(self._intake.max_body):
            self.refuse(*refusal)
        elif self._parser.should_upgrade():  # now: the parser calls it complete next
            self.refuse(400, "Upgrades are not supported.", "bad_request")
        elif request.length > 0:
            self._reserved = request.length
            if not self._account.take(request.length):
                self.refuse(503, _BUSY, "busy")
            else:
                self.owes_continue = request.expects_continue

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, for which room has been kept."""
        if not self.refusing:
            self.owes_continue = False
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Queue the request."""
        if self.refusing:
            return
        parts = self._parts
        self._request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._request.begun_ns, self.begun_ns = self.begun_ns, 0
        self.queue.append(self._request)
        self._intake.waiting += 1
        self._request = Request()
        self._parts = []
        self._reserved = 0  # now the request's, which the queue has
        self.unfinished = False
        if self._intake.waiting > MAX_WAITING and len(self.queue) > 1:
            self.drop()
            self.refuse(503, "Too many requests are open; try again later.", "busy")

    # ------------------------------------------------------------------- giving up

    def refuse(self, status: int, text: str, code: str) -> None:
        """Queue a refusal after which the connection closes; read no more."""
        if self.refusing:
            return
        self.refusing = True
        self.drop_partial()
        refused = Request()
        refused.keep_alive = False
        refused.refused = (status, text, code)
        self.queue.append(refused)
        self._intake.waiting += 1
        self._request.headers_done = True

    def drop_partial(self) -> None:
        """Forget the request that has not come whole."""
        self._account.give(self._reserved)
        self._reserved = 0
        self._parts = []
        self.unfinished = self.owes_continue = False

    def drop(self) -> None:
        """Forget everything that has not been begun."""
        self.drop_partial()
        self._account.give(sum(len(request.body) for request in self.queue))
        self._intake.waiting -= len(self.queue)
        self.queue.clear()
