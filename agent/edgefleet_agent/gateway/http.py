"""HTTP/1.1 on one connection: one request at a time, answers in order."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, cast

from edgefleet_agent.gateway.fast import Connection as FastConnection
from edgefleet_agent.gateway.guests import Standing
from edgefleet_agent.gateway.http_reader import Reader
from edgefleet_agent.gateway.intake import Intake
from edgefleet_agent.gateway.messages import Request, error, inference, status_line
from edgefleet_agent.ipc import fast, frames, loans

if TYPE_CHECKING:
    from edgefleet_agent.gateway.endpoints import Endpoints

_LINGER_S: Final = 2.0
_TURN: Final = 16
"""So many answers of our own in a row; then it is another connection's turn."""
_RETURNS_MAX: Final = 3
"""A connection that a worker has given back so often stays here."""
_BACK = {frames.ODD: 1, frames.BLOCKED: 1, frames.SLOW: 1, frames.LARGE: _RETURNS_MAX}
"""What each reason for giving a connection back counts."""
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_LATER: Final = b"Retry-After: 1\r\n"


class Connection(asyncio.Protocol):
    """One client. Implements `pending.Asker`, `lending.Borrower`, `guests.Guest`, `unread.Reader`.

    Attributes:
        account: What the client holds.
        since: When what it is about began, see `guests.Guest`.
    """

    client = 0

    def __init__(self, endpoints: Endpoints, intake: Intake) -> None:
        self._endpoints = endpoints
        self._intake = intake
        self._transport: asyncio.Transport | None = None
        self.since = 0.0
        self._busy = False  # a request is with the endpoints
        self._pumping = False
        self._paused = False  # nothing is read
        self._keep_alive = True  # of the request that is answered next
        self._bodiless = False  # it is HEAD
        self._ended = False  # the client has sent its last byte
        self._blocked = False  # the client does not read its answers
        self._fresh = True  # nothing has come yet
        self._answering = 0  # bytes of the body that is with the endpoints
        self._patience: asyncio.TimerHandle | None = None
        self._begun = 0  # for which request it runs
        self._target = b""  # of the last request
        self._streak = 0  # inferences in a row with that target, all answered 200
        self._lent = False  # a worker reads and answers
        self._lent_for = ""  # the model it was lent for, ever
        self._returns = 0
        self._closing = False
        self._key = os.urandom(8)
        self._who = b""  # what the request that is answered next says of its client

    # ------------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, if there is room for one more."""
        kept = cast("asyncio.Transport", transport)
        self.since = time.monotonic()
        self.account = self._intake.accounts.of(kept.get_extra_info("socket"))
        self._reader = Reader(self._intake, self.account)
        if not self._intake.guests.enter(self):
            self._reader.refusing = True
            kept.abort()
            return
        kept.set_write_buffer_limits(high=0)  # whoever does not read shall be known at once
        self._transport = kept

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; an answer that comes later goes nowhere."""
        del exc
        self._transport = None
        self._lent = False
        self._drop()
        self._intake.unread.paid(self)
        self._intake.guests.leave(self)

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are still due."""
        self._ended = True
        return self._busy or bool(self._reader.queue)

    def pause_writing(self) -> None:
        """Start no request whose answer nobody reads, and read none."""
        self._blocked = True
        self._intake.unread.owes(self, self.unsent())
        self._look()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        self._intake.unread.paid(self)
        self._pump()

    def unsent(self) -> int:
        """Return how many bytes of answers the client has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def data_received(self, data: bytes) -> None:
        """Take requests, but for the first byte of the fast path."""
        reader = self._reader
        if reader.refusing:
            return
        if self._fresh:
            self._fresh = False
            if data[0] == fast.MAGIC and self._hand_over(data):
                return
        reader.feed(data)
        if reader.unfinished or self._patience is not None:
            self._be_patient()
        if reader.queue:
            self._pump()
        elif reader.owes_continue:
            self._continue()
        if reader.queue or reader.unfinished:
            self._look()

    def _look(self) -> None:
        """Read on, or not: one request at a time, and a large one behind another waits outside."""
        transport, reader = self._transport, self._reader
        if transport is None or self._lent:
            return
        held_up = self._busy and reader.large
        wanted = not reader.queue and not self._blocked and not held_up
        if wanted != self._paused:
            return
        self._paused = not wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _continue(self) -> None:
        """Say `100 Continue`, once all that came before has been answered."""
        if self._transport is None or self._busy or self._reader.queue or self._blocked:
            return
        self._reader.owes_continue = False
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _hand_over(self, data: bytes) -> bool:
        """Let the fast path go on with this socket; False if it cannot carry descriptors."""
        transport = self._transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if transport is None or sock is None or sock.family != socket.AF_UNIX:
            return False
        self._reader.refusing = True
        own = socket.socket(fileno=os.dup(sock.fileno()))
        transport.abort()
        FastConnection(own, self._endpoints, self._intake, data, self)
        return True

    # ------------------------------------------------------------------- standing

    @property
    def standing(self) -> Standing:
        """Whether the client waits for us, or we for it."""
        reader = self._reader
        if self._blocked or reader.refusing:
            return Standing.SLOW
        if self._busy or self._lent or reader.queue:
            return Standing.OPEN
        return Standing.SLOW if reader.unfinished else Standing.IDLE

    def _drop(self) -> None:
        """Forget everything that is not with the endpoints."""
        self._reader.drop()
        self._be_patient()

    def _be_patient(self) -> None:
        """Give a request that has begun so much time to come whole."""
        reader, running = self._reader, self._patience is not None
        if running and reader.unfinished and reader.begun == self._begun:
            return
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if reader.unfinished:
            self._begun, self.since = reader.begun, time.monotonic()
            loop, patience_s = asyncio.get_running_loop(), self._intake.patience_s
            self._patience = loop.call_later(patience_s, self._too_slow)

    def _too_slow(self) -> None:
        self._patience = None
        if self._busy or self._blocked or self._reader.queue:
            self._be_patient()  # not its fault: nothing is read from it meanwhile
            return
        self._reader.refuse(408, "The request did not come whole in time.", "request_timeout")
        self._pump()

    def _pump(self) -> None:
        """Start queued requests, one after the other, as long as each is answered at once."""
        if self._pumping or self._lent:
            return
        self._pumping, queue, left = True, self._reader.queue, _TURN
        while queue and not self._busy and not self._blocked:
            if not left:
                asyncio.get_running_loop().call_soon(self._pump)
                break
            left -= 1
            self._begin(queue.popleft())
        self._pumping = False
        if not queue and not self._busy and self._reader.owes_continue:
            self._continue()
        if self._paused:
            self._look()

    def _begin(self, request: Request) -> None:
        self._intake.waiting -= 1
        self._busy = True
        self._keep_alive = request.keep_alive
        self._answering = len(request.body)
        self._bodiless = request.method == b"HEAD"
        self._who = request.client
        self._note(request)
        if request.refused:
            status, text, code = request.refused
            self.send(error(status, text, code, _LATER if status == 503 else b""))
        else:
            self._endpoints.handle(request, self)

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
        reader = self._reader
        if transport is None or self._busy or reader.queue or reader.unfinished or self._ended:
            return
        if reader.refusing or self._lent or self._blocked or transport.get_write_buffer_size():
            return
        if lent_for := self._endpoints.offer(self, self._target):
            transport.pause_reading()
            self._paused = True
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
        self.since = time.monotonic()
        self._reader.restart()
        if left.unsent:
            transport.write(left.unsent)
        if self._closing and not left.begun_ns:
            transport.close()
            return
        self._reader.begun_ns = left.begun_ns
        if left.unread:
            self.data_received(left.unread)
        self._pump()

    def abandon(self) -> None:
        """Close at once: nobody knows what the client has been told."""
        self._lent = False
        self.abort()

    def abort(self) -> None:
        """Close at once; what is not read is not kept by the kernel either."""
        transport = self._transport
        if transport is None:
            return
        if self.unsent() and not transport.is_closing():
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()

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
        self.since = time.monotonic()
        if self._answering:
            self.account.give(self._answering)
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
        elif self._ended and not self._reader.queue:
            transport.close()
        elif self._paused or self._reader.queue or self._reader.owes_continue:
            self._pump()

    def _close_gently(self) -> None:
        """Close so that the client can still read: a close with unread input would reset it."""
        self._reader.refusing = True
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
