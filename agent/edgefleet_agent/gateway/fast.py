"""One client of the fast path: frames on a Unix socket, descriptors beside them.

It begins as any connection of `http`; the first byte tells them apart. An event loop's transport
cannot receive descriptors, so this one reads its socket itself.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from edgefleet_agent.gateway.fast_call import Call
from edgefleet_agent.gateway.fast_outbox import Outbox
from edgefleet_agent.gateway.fast_plans import Plans
from edgefleet_agent.gateway.fast_slots import Slot, Table
from edgefleet_agent.gateway.guests import Guest, Standing
from edgefleet_agent.ipc import fast, frames, loans, mapping
from edgefleet_agent.ipc.fast_inbox import Frame, Inbox
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from edgefleet_agent.gateway.endpoints import Endpoints
    from edgefleet_agent.gateway.intake import Intake

FDS_MAX = 8
"""Descriptors that may have come and wait for their SLOT; the kernel drops what is more."""
LOOSE_MAX = 256
"""As many of all clients together: the process has to have some left."""
RETRY_AFTER_MS = 1000
_RETURNS_MAX = 3
"""A connection that a worker has given back so often stays here."""
_BACK = {frames.BLOCKED: 1, frames.SLOW: 1, frames.LARGE: _RETURNS_MAX}
"""What each reason for giving a connection back counts; ODD is a client that offers a slot."""
_SPACE = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
_SLOT_BODIES = 4  # longest bodies that the slots of one client may hold
_STATUS = {"body_too_large": 413}


class Connection:
    """One client. Implements `lending.Borrower`, `guests.Guest` and `unread.Reader`.

    Args:
        sock: Its socket, from now on this object's; its `HELLO` has been read.
        endpoints: Where requests go.
        intake: What all clients together may hold.
        first: What has been read already.
        guest: Who stood for the connection so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        endpoints: Endpoints,
        intake: Intake,
        first: bytes,
        guest: Guest,
    ) -> None:
        self._sock = sock
        self._endpoints = endpoints
        self._intake = intake
        self.account = guest.account
        self.since = time.monotonic()
        self._pool = pool = intake.slots
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(intake.max_body)
        slot_bytes = min(_SLOT_BODIES * intake.max_body, mapping.MAPPED_MAX)
        self.client = pool.number()
        self.key = os.urandom(8)  # `who`
        self._slots = Table(self.client, pool, slot_bytes)
        self._limits = fast.Limits(fast.SLOTS_MAX, fast.OPEN_MAX, slot_bytes, intake.max_body)
        self._fds: deque[int] = deque()
        self._plans = Plans(self._slots)
        self._open = 0  # requests that are with the router
        self._held = 0  # bytes of the frame that has begun to come
        self._welcomed = False
        self._holding = False  # slots may come: nobody else reads this connection
        self._reading = False
        self._stays = False  # it said in its hello that it is not to be lent
        self._asked = ("", "")  # model and version of the last request
        self._streak = 0  # requests in a row for that, all answered 200
        self._lent: tuple[Slot, ...] | None = None  # a worker reads; the memory it may need
        self._lent_for = ""  # the model it was lent for, ever
        self._returns = 0
        self._begun_ns = 0  # of the next request, if a worker died on it
        self._closing = False
        self._outbox = Outbox(sock, self, intake.unread, self._resume, self.close)
        self._patience: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        intake.guests.replace(guest, self)
        self._inbox.feed(first)
        self._serve()

    # ------------------------------------------------------------------- reading

    def _on_readable(self) -> None:
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._inbox.space()], _SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._fds.extend(numbers)
                self._pool.loose += len(numbers)
        many = len(self._fds) > FDS_MAX or self._pool.loose > LOOSE_MAX
        if not count or flags & socket.MSG_CTRUNC or (many and self._fds):
            self.close()
            return
        self._inbox.wrote(count)
        self._serve()

    def _serve(self) -> None:
        """Serve every frame that is whole, as long as this client may have more open."""
        number = 0
        try:
            while self._reads:
                frame = self._inbox.next()
                self._charge()
                if frame is None:
                    break
                number = frame[0][2]
                self._stop_clock()  # what comes next has time of its own
                self._take(frame)
        except EdgeFleetError as error:  # what comes after cannot be told apart any more
            self._refuse(number, error)
            self._closing = True
        self._look()

    @property
    def _reads(self) -> bool:
        idle = self._lent is None and not self._closing
        return idle and self._open < fast.OPEN_MAX and not self._outbox

    def _charge(self) -> None:
        """Count a frame that has begun to come, by what its prefix says."""
        awaited = self._inbox.awaited
        more, self._held = awaited - self._held, awaited
        if more and not self.account.take(more) and more > 0:
            raise UnavailableError(
                "Too many large requests are open; try again later.", code="busy"
            )

    def _look(self) -> None:
        """Read on, or not; give what has begun its time; end what shall end."""
        if self._sock.fileno() < 0:
            return
        if self._closing and not self._open and not self._outbox and self._lent is None:
            self.close()
            return
        reading = self._reads
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._on_readable)
            else:
                self._loop.remove_reader(self._sock)
        begun = reading and bool(self._inbox.awaited or self._fds)
        if begun != (self._patience is not None):
            if not begun:
                self._stop_clock()
            else:
                self.since = time.monotonic()
                self._patience = self._loop.call_later(self._intake.patience_s, self.close)

    def _stop_clock(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    # ------------------------------------------------------------------- frames

    def _take(self, frame: Frame) -> None:
        (kind, _, number, head_length, _, time), body = frame
        if kind == fast.INFER and self._welcomed:
            self._infer(number, head_length, time, body)
        elif kind in {fast.SLOT, fast.DROP} and self._welcomed:
            self._offer(kind, number, bytes(body))
        elif kind == fast.HOLD and self._welcomed:
            self._holding = True
            self.send(fast.prefix(fast.DONE, number), b"")
        elif kind == fast.HELLO and not self._welcomed:
            self._welcomed, self._stays = True, time > 0
            head = fast.encode_limits(self._limits)
            self.send(fast.prefix(fast.WELCOME, number, len(head)), head)
        else:
            raise InvalidInputError(f"A frame of kind {kind} was not expected.", code="bad_frame")

    def _infer(self, number: int, head_length: int, timeout_us: int, body: memoryview) -> None:
        data = bytes(body)
        self._holding = False
        try:
            head, shared = self._plans.find(data[:head_length], len(data) - head_length)
        except InvalidInputError as error:
            self._refuse(number, error)
            return
        if self._lent_for and head.model != self._lent_for:
            text = f"This connection is for {self._lent_for!r}; open another one."
            self.refuse(number, fast.Refusal(409, "other_model", text))
            return
        if self._asked != (head.model, head.version):
            self._asked, self._streak = (head.model, head.version), 0
        begun_ns, self._begun_ns = self._begun_ns, 0
        for slot in shared.slots:
            slot.uses += 1
        self._open += 1
        self.account.take(len(data))
        self._endpoints.submit(
            Call(self, number, shared, len(data)),
            head.model,
            head.version,
            data,
            head_length,
            timeout_us * 1000,
            shared,
            begun_ns,
        )

    def _offer(self, kind: int, number: int, head: bytes) -> None:
        fd = -1
        if kind == fast.SLOT and self._fds:
            fd = self._fds.popleft()
            self._pool.loose -= 1
        self._plans.clear()
        try:
            slot, access, size = fast.read_offer(head)
            if kind == fast.DROP:
                self._slots.drop(slot)
            elif not self._holding:
                raise InvalidInputError("Before SLOT say HOLD, and wait.", code="bad_frame")
            elif fd < 0:
                raise InvalidInputError("A slot came without a descriptor.", code="bad_descriptor")
            else:
                self._slots.add(slot, access, size, fd)
                fd = -1
        except EdgeFleetError as error:
            self._refuse(number, error)
            return
        finally:
            if fd >= 0:
                os.close(fd)
        self.send(fast.prefix(fast.DONE, number), b"")

    # ------------------------------------------------------------------- answers

    def ended(self, length: int, status: int) -> None:
        """A request of so many bytes has been answered."""
        self._open -= 1
        self.since = time.monotonic()
        self.account.give(length)
        if not self._open and self.fileno() < 0:
            self._pool.give(self.client)
        self._streak = self._streak + 1 if status == 200 else 0
        if self._streak >= self._endpoints.lend_after > 0 and self._returns < _RETURNS_MAX:
            self._loop.call_soon(self._offer_self)

    def _refuse(self, number: int, error: EdgeFleetError) -> None:
        busy = isinstance(error, UnavailableError)
        status, retry = (503, RETRY_AFTER_MS) if busy else (_STATUS.get(error.code, 400), 0)
        self.refuse(number, fast.Refusal(status, error.code, str(error), retry))

    def refuse(self, number: int, refusal: fast.Refusal) -> None:
        """Send why there is no answer."""
        head = fast.encode_refusal(refusal)
        self.send(fast.prefix(fast.REFUSED, number, len(head)), head)

    def send(self, head: bytes, body: bytes) -> None:
        """Send a frame, now as far as the client reads, the rest later."""
        if self._sock.fileno() < 0:
            return
        self._outbox.send(head, body)
        if not self._reading or self._closing:
            self._loop.call_soon(self._resume)

    def unsent(self) -> int:
        """Return how many bytes of answers the client has not read."""
        return self._outbox.size

    def _resume(self) -> None:
        """Go on with what was left lying while too much was open."""
        if self._sock.fileno() >= 0 and not self._reading and self._lent is None:
            self._serve()

    # ------------------------------------------------------------------- lending

    def _offer_self(self) -> None:
        """Lend the connection, if it still is between two requests and all has been sent."""
        busy = self._open or self._outbox or self._inbox.awaited or self._fds or self._holding
        if self.fileno() < 0 or busy or self._closing or self._stays or self._lent is not None:
            return
        slots = self._slots.all
        for slot in slots:
            slot.uses += 1
        self._lent, self._streak = slots, 0
        if self._endpoints.lend(self, *self._asked, slots) is None:
            self._take_back()
            return
        self._lent_for = self._asked[0]
        self._look()

    def _take_back(self) -> None:
        for slot in self._lent or ():
            slot.uses -= 1
        self._lent = None

    def fileno(self) -> int:
        """Return the connection's descriptor, -1 once it is closed."""
        return self._sock.fileno()

    def resume(self, left: loans.Left, reason: int) -> None:
        """Go on where the worker stopped."""
        self._take_back()
        self.since = time.monotonic()
        self._returns += _BACK.get(reason, 0)
        if self.fileno() < 0:
            return
        if left.unsent:
            self.send(left.unsent, b"")
        self._begun_ns = left.begun_ns
        self._inbox.feed(left.unread)
        self._serve()

    def abandon(self) -> None:
        """Close at once: nobody knows what the client has been told."""
        self._take_back()
        self.close()

    # ------------------------------------------------------------------- the end

    @property
    def standing(self) -> Standing:
        """Whether the client waits for us, or we for it."""
        if self._outbox:
            return Standing.SLOW
        if self._open or self._lent is not None:
            return Standing.OPEN
        return Standing.IDLE if self._patience is None else Standing.SLOW

    def close_when_idle(self) -> None:
        """For shutting down: close now, or after the answers that are due."""
        self._closing = True
        self._look()

    def close(self) -> None:
        """Forget the client; answers that come later go nowhere."""
        if self._sock.fileno() < 0:
            return
        self._closing = True
        self._stop_clock()
        self._loop.remove_reader(self._sock)
        self._outbox.close()
        self._sock.close()
        self.account.give(self._held)
        self._held = 0
        self._pool.loose -= len(self._fds)
        while self._fds:
            os.close(self._fds.popleft())
        self._slots.close()
        if not self._open:  # else a worker may yet read a request that bears it
            self._pool.give(self.client)
        self._intake.guests.leave(self)

    abort = close
