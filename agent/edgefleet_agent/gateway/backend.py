"""One loaded digest: its worker, the requests it is busy with, and how often it died."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from edgefleet_agent.gateway.child import Child
from edgefleet_agent.gateway.counters import Counters
from edgefleet_agent.gateway.fast_slots import Reach, Slot
from edgefleet_agent.gateway.launcher import Started
from edgefleet_agent.gateway.lending import Loans
from edgefleet_agent.gateway.link import Link
from edgefleet_agent.gateway.pending import Pending
from edgefleet_agent.ipc import bodies, frames
from edgefleet_agent.ipc.bodies import Bodies
from edgefleet_agent.ipc.control import DigestStats, ModelSpec
from edgefleet_agent.worker.pace import KEPT, LONG_NS, Pace

CRASHES = 3
CRASH_WINDOW_S = 60.0

_NUMBERS = 1 << 32
_TIDY_S = 10.0
_DEAD_S = 0.5
"""After so long nothing more comes from a worker that has ended."""


class Backend:
    """Asks its worker; the owner decides what happens with answers and after a death.

    Args:
        spec: What is loaded.
        files: Descriptors of its files, now this object's.
        counters: Where to count.
        on_answer: Called with each request, its status, body, JSON length, nanoseconds of
            computing and whether an output was not finite.
        on_death: Called once for each worker that dies without being asked to.
    """

    def __init__(
        self,
        spec: ModelSpec,
        files: list[int],
        counters: Counters,
        on_answer: Callable[[Pending, int, bytes, int, int, bool], None],
        on_death: Callable[[Backend], None],
    ) -> None:
        self.spec = spec
        self.digest = spec.digest
        self.files = files
        self.counters = counters
        self.in_flight: dict[int, Pending] = {}
        self.quarantined = ""
        self.loans: Loans | None = None
        self.pace = Pace(())
        self.progress_ns = 0  # when the worker last took up or finished something
        self._on_answer = on_answer
        self._on_death = on_death
        self.deaths: deque[float] = deque(maxlen=CRASHES)
        self._failed_starts = 0
        self._number = 0
        self._drained: asyncio.Future[None] | None = None
        self._link: Link | None = None
        self._reach: Reach | None = None
        self._bodies: Bodies | None = None
        self._tidying = False
        self._child: Child | None = None

    @property
    def ready(self) -> bool:
        """Whether a worker is there to be asked."""
        return self._link is not None

    @property
    def pid(self) -> int:
        """The worker's pid, 0 while there is none."""
        return self._child.pid if self._child else 0

    def attach(self, started: Started) -> None:
        """Take over a worker that has reported ready."""
        link, self._child = started.link, started.child
        assert link is not None
        assert started.child is not None
        loop = asyncio.get_running_loop()
        # Somebody may have been given its socket, which would then not end with it.
        started.child.ended.add_done_callback(lambda _: loop.call_later(_DEAD_S, link.close))
        self._link = link
        self._reach = Reach(started.descriptors) if started.descriptors else None
        self._bodies = started.bodies
        self.counters.memory_kb = started.report.memory_kb
        self.counters.accelerated_pct = started.report.accelerated_pct
        self.loans = None if started.area is None else Loans(started.area, link, self.kill)
        link.on_frame = self._on_frame
        link.on_lost = self._on_lost

    def bring(self, slots: Iterable[Slot]) -> bool:
        """See to it that the worker has this memory; False if that cannot be done just now."""
        return self._reach is not None and self._reach.bring(slots)

    def ask(self, pending: Pending) -> None:
        """Send a request to the worker."""
        assert self._link is not None
        number = self._number = (self._number + 1) % _NUMBERS
        if not self.in_flight:
            self.progress_ns = time.monotonic_ns()
        self.in_flight[number] = pending
        pending.backend = self
        kind, client = frames.INFER_ALONE if pending.alone else frames.INFER, 0
        if (shared := pending.shared) is not None:
            if not self.bring(shared.slots):
                del self.in_flight[number]
                self._on_answer(pending, 503, _NOT_NOW, frames.NO_JSON, 0, False)
                return
            kind, client = kind + frames.FAST, shared.client
        body, length, deadline = pending.body, pending.json_length, pending.deadline
        if len(body) >= bodies.LEAST and self._bodies is not None:
            place = self._bodies.lay(number, body, length)
            kind, body = (kind, body) if place is None else (kind + frames.HELD, place)
        self._link.send(frames.HEADER.pack(len(body), kind, client, number, length, deadline), body)

    def _on_frame(self, frame: frames.Frame) -> None:
        kind, status, number, json_length, spent, body = frame
        if kind == frames.RETURN:
            self._on_return(frame)
            return
        if kind == frames.RAN:
            self._on_run(status, number, spent)
            return
        pending = self.in_flight.pop(number, None)
        if pending is None:
            return
        if len(pending.body) >= bodies.LEAST and self._bodies is not None:
            self._bodies.free(number)
            self._tidy()
        self.progress_ns = time.monotonic_ns()
        fits = status != 200 or _fits(pending, json_length, body)
        if status not in frames.STATUSES or not fits:
            self.kill()  # no worker of ours says so: a model speaks for it
            status, json_length, body = 500, frames.NO_JSON, memoryview(_NONSENSE)
        spent = min(spent, self.progress_ns - pending.arrived)  # a worker may say anything
        nonfinite = kind == frames.ANSWER_NONFINITE
        self.pace.ran(spent)
        self._on_answer(pending, status, bytes(body), json_length, spent, nonfinite)
        if self._drained is not None and self._idle:
            self._tell_drained()

    def _on_run(self, rows: int, requests: int, spent: int) -> None:
        """Count what a worker says of a run; it comes before the answers to those requests."""
        if self.spec.batching is None or not rows or not 0 < requests <= len(self.in_flight):
            self.kill()
            return
        oldest = next(iter(self.in_flight.values()))
        self.counters.ran(rows, min(spent, time.monotonic_ns() - oldest.arrived))

    def _tidy(self, *, now: bool = False) -> None:
        """Give the memory of large bodies back when it was not needed for a while."""
        if self._bodies is None:
            return
        if now and not self._bodies.used:
            self._tidying = False
            self._bodies.empty()
        elif now or not self._tidying:
            self._tidying = True
            asyncio.get_running_loop().call_later(_TIDY_S, lambda: self._tidy(now=True))

    def _on_return(self, frame: frames.Frame) -> None:
        if frame[1] == frames.SLOW:
            self.pace = Pace([2 * LONG_NS] * KEPT)
        if self.loans is not None:
            self.loans.returned(frame)
        if self._drained is not None and self._idle:
            self._tell_drained()

    @property
    def _idle(self) -> bool:
        return not self.in_flight and not self.loans

    def bury_loans(self) -> bool:
        """Take back what a dead worker held; return whether it died on one of their requests."""
        held, self.loans = self.loans, None
        if held is None:
            return False
        held.sync(self.counters)
        again = held.bury()
        self.counters.replayed += again
        return again > 0

    @property
    def busy(self) -> int:
        """How many requests the worker has now."""
        return len(self.in_flight) + (self.loans.running if self.loans else 0)

    def read(self, role: str, max_gap_ns: int, *, restart_gaps: bool) -> DigestStats:
        """Return the counters, those that the worker keeps itself included."""
        if self.loans is not None:
            self.loans.sync(self.counters)
            max_gap_ns = max(max_gap_ns, self.loans.gap(restart=restart_gaps))
        return self.counters.read(role, self.busy, max_gap_ns // 1000)

    def _on_lost(self) -> None:
        if self._link is None:
            return  # it was asked to go
        self._link = self._bodies = None
        self._let_go()
        self._tell_drained()
        self.deaths.append(time.monotonic())
        self.counters.crashes += 1
        self._on_death(self)

    def _let_go(self) -> None:
        if self._reach is not None:
            self._reach.close()
            self._reach = None

    def failed_to_start(self) -> None:
        """Count a respawn that did not come up as one more crash."""
        self.deaths.append(time.monotonic())
        self._failed_starts += 1
        self.counters.crashes += 1

    def forgo_prepared(self) -> None:
        """Start the worker from the package itself from now on."""
        own = len(self.files) - self.spec.prepared_files
        for fd in self.files[own:]:
            os.close(fd)
        del self.files[own:]
        self.spec = msgspec.structs.replace(self.spec, prepared=None)

    @property
    def crash_looping(self) -> bool:
        """Whether it died `CRASHES` times within `CRASH_WINDOW_S`, or did not start as often.

        A start may take as long as the package allows, so that three take longer than the window.
        """
        deaths = self.deaths
        quick = len(deaths) == CRASHES and deaths[-1] - deaths[0] < CRASH_WINDOW_S
        return quick or self._failed_starts >= CRASHES

    def take_orphans(self) -> list[Pending]:
        """Return the unanswered requests of a dead worker in the order they were asked."""
        orphans = [pending for pending in self.in_flight.values() if not pending.done]
        self.in_flight.clear()
        return orphans

    async def drained(self, patience_s: float) -> None:
        """Wait until the worker has nothing to do or is dead, or for so many seconds."""
        if self.loans is not None:
            self.loans.recall()
        if not self._idle and self.ready:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._drained], timeout=patience_s)

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def kill(self) -> None:
        """Kill a worker that hangs; its death is then like any other."""
        if self._child is not None:
            self._child.kill()

    async def how_it_died(self) -> int:
        """Return the dead worker's wait status, killing it if it only closed its socket."""
        assert self._child is not None
        return await self._child.end(0.5)

    async def end(self, patience_s: float) -> None:
        """End the worker, if there is one, and close the files."""
        link, self._link = self._link, None
        self._let_go()
        if link is not None:
            link.close()
        if self._child is not None:
            await self._child.end(patience_s)
            self._child = None
        self.bury_loans()
        for fd in self.files:
            os.close(fd)
        self.files = []


_NOT_NOW = b'{"error":"The worker has too much shared memory; try again later.","code":"busy"}'
_NONSENSE = b'{"error":"The worker answered with nonsense.","code":"inference_failed"}'


def _fits(pending: Pending, json_length: int, body: memoryview) -> bool:
    if json_length == frames.NO_JSON:
        return pending.shared is None  # frames have a head
    return json_length <= len(body)
