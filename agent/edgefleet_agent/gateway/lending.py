"""Connections that a worker answers itself, and how they come back.

A request that the gateway relays wakes it twice. A connection that keeps asking one short model is
lent instead: its descriptor goes to the worker, the gateway stops reading and keeps its own copy.
It comes back at the end of a request: because the worker hands it back, because the route moves, or
because the worker died, and then nothing that was read from it is lost (`ipc.loans`).
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from edgefleet_agent.ipc import frames, loans
from edgefleet_shared.errors import InvalidInputError

if TYPE_CHECKING:
    from edgefleet_agent.gateway.backend import Backend
    from edgefleet_agent.gateway.counters import Counters
    from edgefleet_agent.gateway.fast_slots import Slot
    from edgefleet_agent.gateway.link import Link
    from edgefleet_agent.gateway.router import Route

_SWEEPS: Final = 4  # within the time after which a worker that does nothing is taken for hung
_HUNG_SWEEPS: Final = _SWEEPS + 1

_RECENT_NS: Final = 100_000_000
"""Who has not been worth lending for so long does not count."""


class Borrower(Protocol):
    """A connection that can be lent; `client` is its number on the fast path, 0 for HTTP."""

    client: int

    def fileno(self) -> int:
        """Return the descriptor; -1 once the client is gone."""

    def resume(self, left: loans.Left, reason: int) -> None:
        """Go on where the worker stopped; `reason` is one of `frames`', 0 = the worker died."""

    def abandon(self) -> None:
        """Close: nobody knows where the worker stopped."""


class _Loan(NamedTuple):
    borrower: Borrower
    slot: loans.Slot


class Loans:
    """What one worker holds.

    Args:
        area: The memory shared with it.
        link: The way to it.
        nonsense: Called when it says what cannot be true.
    """

    def __init__(self, area: loans.Area, link: Link, nonsense: Callable[[], None]) -> None:
        self._area = area
        self._link = link
        self._nonsense = nonsense
        self._ledger = loans.Ledger(area)
        self._free = list(range(loans.SLOTS))
        self._lent: dict[int, _Loan] = {}
        self._seen: dict[int, tuple[tuple[int, ...], int]] = {}
        self._idle: dict[int, tuple[tuple[int, ...], float]] = {}
        self._recalled_ns = 0  # since when all of them are asked for
        self._asked: dict[Borrower, int] = {}  # who could be lent, and when it was so last
        self._thinning = False  # all are asked for, to be relayed

    def __len__(self) -> int:
        """Return how many connections the worker has."""
        return len(self._lent)

    @property
    def running(self) -> int:
        """Return how many of them have a request that runs just now."""
        return sum(loan.slot.running for loan in self._lent.values())

    def crowded(self, borrower: Borrower) -> bool:
        """Note that a connection is worth lending; tell whether too many are, and take all back."""
        now = time.monotonic_ns()
        self._asked.pop(borrower, None)
        self._asked[borrower] = now
        while (first := next(iter(self._asked.items())))[1] < now - _RECENT_NS:
            del self._asked[first[0]]
        if len(self._asked) + len(self._lent) <= loans.SLOTS:
            return False
        if self._lent and not self._thinning:
            self._thinning = True
            self._link.send(frames.head(frames.RECALL, 0, frames.ALL, 0, 0, 0), b"")
        return True

    @property
    def open(self) -> int:
        """Return on how many of them a request runs, or has come and waits."""
        waiting = {number for number, _ in self._waiting()}
        return len(waiting.union(n for n, loan in self._lent.items() if loan.slot.asked))

    def lend(self, borrower: Borrower) -> bool:
        """Give a connection away that is at a request boundary; return whether it is gone."""
        if not self._free or self._area.words[loans.RECALLED]:
            return False
        number = self._free[-1]
        slot = self._area.slot(number)
        slot.clear()
        if not self._link.send_descriptor(
            frames.head(frames.LEND, borrower.client, number, 0, 0, 0), borrower
        ):
            return False
        self._free.pop()
        self._asked.pop(borrower, None)
        self._lent[number] = _Loan(borrower, slot)
        return True

    def recall(self) -> None:
        """Ask for all of them; the worker begins no further request."""
        self._area.words[loans.RECALLED] = 1
        self._recalled_ns = self._recalled_ns or time.monotonic_ns()
        if self._lent:
            self._link.send(frames.head(frames.RECALL, 0, frames.ALL, 0, 0, 0), b"")

    def reopen(self) -> None:
        """Lend again."""
        self._area.words[loans.RECALLED] = 0
        self._recalled_ns = 0

    def returned(self, frame: frames.Frame) -> None:
        """Take one back that the worker gives back."""
        _, reason, number, end, _, body = frame
        loan = self._take(number)
        if loan is None:
            self._nonsense()
            return
        try:
            left = loan.slot.left(end, bytes(body))
        except InvalidInputError:
            loan.borrower.abandon()
            self._nonsense()
            return
        loan.borrower.resume(left, reason)

    def _take(self, number: int) -> _Loan | None:
        loan = self._lent.pop(number, None)
        if loan is not None:
            self._free.append(number)
            self._seen.pop(number, None)
            self._thinning = self._thinning and bool(self._lent)
            self._idle.pop(number, None)
        return loan

    def bury(self) -> int:
        """Take all back from a worker that is dead; return how many requests run anew."""
        again = 0
        for number in list(self._lent):
            loan = self._take(number)
            assert loan is not None
            try:
                left = loan.slot.left()
            except InvalidInputError:
                loan.borrower.abandon()
                continue
            if left.begun_ns:
                again += 1
            loan.borrower.resume(left, 0)
        return again

    def sync(self, counters: Counters) -> None:
        """Add what the worker counted since the last time."""
        try:
            counters.grow(self._ledger.growth())
        except InvalidInputError:
            self._nonsense()

    def gap(self, *, restart: bool) -> int:
        """Return the longest gap between two answers, ns, and start it afresh if asked to."""
        return self._ledger.gap(restart=restart)

    def hung(self, patience_ns: int) -> bool:
        """Tell whether the worker has left a connection alone for too long; asks slow clients back.

        A request that runs for longer than `patience_ns`, a connection that has not come back so
        long after all were recalled, or bytes that wait for several sweeps while the worker does
        not touch the connection's slot.
        """
        now = time.monotonic_ns()
        if self._recalled_ns and self._lent and now - self._recalled_ns > patience_ns:
            return True
        for number, loan in list(self._lent.items()):
            words = loan.slot.words
            if words[loans.STARTED] and now - words[loans.STARTED] > patience_ns:
                return True
            if words[loans.SINCE] and now - words[loans.SINCE] > patience_ns // _SWEEPS:
                self._link.send(frames.head(frames.RECALL, 0, number, 0, 0, 0), b"")
        return any(self._sweeps(number, loan) > _HUNG_SWEEPS for number, loan in self._waiting())

    def recall_idle(self, idle_s: float) -> None:
        """Ask for those on which nothing has happened for so long; the gateway closes them."""
        now = time.monotonic()
        for number, loan in self._lent.items():
            moved = loan.slot.moved()
            before, since = self._idle.get(number, ((), now))
            if moved != before or now - since > idle_s:
                self._idle[number] = moved, now
            if moved == before and now - since > idle_s:
                self._link.send(frames.head(frames.RECALL, 0, number, 0, 0, 0), b"")

    def _waiting(self) -> Iterator[tuple[int, _Loan]]:
        """Yield the connections from which something could be read."""
        poll, by_fd = select.poll(), {}
        for number, loan in self._lent.items():
            fd = loan.borrower.fileno()
            if fd >= 0:
                by_fd[fd] = number, loan
                poll.register(fd, select.POLLIN)
        ready = [by_fd[fd] for fd, _ in poll.poll(0)]
        for number in self._lent.keys() - {number for number, _ in ready}:
            self._seen.pop(number, None)
        yield from ready

    def _sweeps(self, number: int, loan: _Loan) -> int:
        """Count how often in a row the slot was found as it is now."""
        moved = loan.slot.moved()
        before, times = self._seen.get(number, ((), 0))
        times = times + 1 if before == moved else 0
        self._seen[number] = moved, times
        return times


class Lending:
    """Decides which connection is lent, and watches over those that are.

    Args:
        routes: The router's.
        timeout_s: After so long without an answer a worker is taken for hung.
        after: How many requests in a row, to one short model, make a connection worth it; 0 = none.
        limit: How many connections a worker may have: each has one request open at a time.

    Attributes:
        idle_s: After so long without a request a connection is asked back; 0 = never.
    """

    def __init__(self, routes: dict[str, Route], timeout_s: float, after: int, limit: int) -> None:
        self.after = after
        self.idle_s = 0.0
        self._limit = limit
        self._routes = routes
        self._timeout_ns = int(timeout_s * 1e9)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._lenders: set[Backend] = set()

    def offer(
        self, borrower: Borrower, model: str, version: str, shared: Iterable[Slot] = ()
    ) -> Backend | None:
        """Lend a connection that has just asked `model`; return to whom, None if it stays.

        `shared` is the memory that its requests may name.
        """
        route = self._routes.get(model)
        backend = route.find(version) if route else None
        if route is None or backend is not route.active or backend.loans is None:
            return None
        if route.trial is not None:
            return None  # one of its versions would have this client for good
        if backend.pace.long or route.waiting or len(backend.loans) >= self._limit:
            return None
        if backend.loans.crowded(borrower) or not backend.bring(shared):
            return None
        if not backend.loans.lend(borrower):
            return None
        self._lenders.add(backend)
        if self._timer is None:
            self._arm()
        return backend

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._timeout_ns / 1e9 / _SWEEPS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        for backend in list(self._lenders):
            held = backend.loans
            if held is None or not len(held):
                self._lenders.discard(backend)
            elif held.hung(self._timeout_ns):
                backend.kill()
            elif self.idle_s:
                held.recall_idle(self.idle_s)
        if self._lenders:
            self._arm()
