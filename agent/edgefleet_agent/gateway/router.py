"""Which worker answers which request: routes, admission, deadlines, replay.

All of it runs in one event loop, so a route moves between two requests and never within one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.gateway.fast_slots import Shared
from edgefleet_agent.gateway.pending import Asker, Pending
from edgefleet_agent.gateway.trials import Trial
from edgefleet_agent.ipc.frames import NO_JSON

_SWEEP_MIN_S = 0.01
RETRY_AFTER_S = 1
TIMEOUT_MAX_NS = 10**15
"""Eleven days: what any door may ask for beyond that means the same."""


class Route:
    """Where one model's requests go now, and where they would go if that failed."""

    __slots__ = (
        "active", "held", "mark_ns", "max_gap_ns", "model", "open", "standby", "swaps", "trial",
        "waiting",
    )  # fmt: skip

    def __init__(self, model: str, active: Backend) -> None:
        self.model = model
        self.active = active
        self.standby: Backend | None = None
        self.waiting: list[Pending] = []  # taken while no worker was there
        self.open = 0  # taken and not answered
        self.mark_ns = 0  # last answer, or the arrival that ended an idle time
        self.max_gap_ns = 0
        self.swaps = 0
        self.held = False  # its workers go, the next ones come: requests wait meanwhile
        self.trial: Trial | None = None  # a version that answers a share, or gets copies

    def end_trial(self) -> None:
        """Let what is active answer everything again, by its worker itself if it may."""
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.cancel()
            if self.active.loans is not None:
                self.active.loans.reopen()

    def find(self, version: str) -> Backend | None:
        """Return the backend of a version; '' is the active one."""
        if not version or self.active.spec.version == version:
            return self.active
        if self.standby is not None and self.standby.spec.version == version:
            return self.standby
        return None


class Router:
    """Takes requests and sees to it that each gets one answer before its deadline.

    Args:
        queue_limit: Requests of one model that may be open at once.
        timeout_s: Deadline of a request that names none.
        hung: Called with a backend whose worker has not moved for `timeout_s`.
    """

    def __init__(self, queue_limit: int, timeout_s: float, hung: Callable[[Backend], None]) -> None:
        self.routes: dict[str, Route] = {}
        self._queue_limit = queue_limit
        self._timeout_ns = int(timeout_s * 1e9)
        self._hung = hung
        self._open: dict[Pending, None] = {}
        self._loop = asyncio.get_running_loop()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_at = 0
        self._quiet: asyncio.Future[None] | None = None

    def submit(
        self,
        asker: Asker,
        model: str,
        version: str,
        body: bytes,
        json_length: int,
        timeout_ns: int = 0,
        shared: Shared | None = None,
        begun_ns: int = 0,
    ) -> None:
        """Take one inference request; the answer comes by `asker.answer`, perhaps at once.

        `shared` is what a request of the fast path refers to; its `json_length` is its head's.
        `begun_ns` is set for one that a worker had begun, by itself, before it died.
        """
        route = self.routes.get(model)
        if route is None:
            asker.answer(404, problem(f"There is no model {model!r}.", "unknown_model"), NO_JSON)
            return
        pinned = None
        if version:
            pinned = route.find(version)
            if pinned is None:
                text = f"Model {model!r} has no version {version!r} loaded."
                asker.answer(404, problem(text, "unknown_version"), NO_JSON)
                return
        if self._full(route):
            route.active.counters.rejected += 1
            text = f"{self._queue_limit} requests wait for {model!r}; try again later."
            asker.answer(503, problem(text, "queue_full"), NO_JSON, RETRY_AFTER_S)
            return
        now = begun_ns or time.monotonic_ns()
        if not route.open:
            route.mark_ns = now
        route.open += 1
        deadline = now + (min(timeout_ns, TIMEOUT_MAX_NS) or self._timeout_ns)
        pending = Pending(asker, route, body, json_length, now, deadline, pinned, shared)
        pending.alone = begun_ns > 0
        trial = route.trial
        if trial is not None and pinned is None and trial.takes(asker.who()):
            pending.trial = trial
        self._open[pending] = None
        if self._sweep_timer is None or deadline < self._sweep_at:
            self._arm(deadline)
        self.dispatch(pending)

    def _full(self, route: Route) -> bool:
        """Tell whether a model's requests are too many, those on lent connections among them."""
        limit, loans = self._queue_limit, route.active.loans
        if route.open >= limit or loans is None or route.open + len(loans) < limit:
            return route.open >= limit
        return route.open + loans.open >= limit

    def dispatch(self, pending: Pending) -> None:
        """Ask the worker whose turn it is, wait for one, or refuse if none will come."""
        route = pending.route
        backend = pending.pinned or route.active
        if route.held:
            pending.backend = None
            route.waiting.append(pending)
            return
        trial = pending.trial
        if trial is not None and trial is route.trial and not pending.alone and trial.backend.ready:
            backend = trial.backend
        if backend.ready:
            backend.ask(pending)
            return
        standby = route.standby
        if pending.pinned is None and standby is not None and standby.ready:
            standby.ask(pending)
        elif backend.quarantined:
            self.finish(pending, 503, problem(backend.quarantined, "quarantined"), NO_JSON)
        else:
            pending.backend = None
            route.waiting.append(pending)

    def resume(self, route: Route) -> None:
        """Dispatch what waited for a worker of this route."""
        waiting, route.waiting = route.waiting, []
        for pending in waiting:
            if not pending.done:
                self.dispatch(pending)

    def answered(
        self,
        pending: Pending,
        status: int,
        body: bytes,
        json_length: int,
        spent: int,
        nonfinite: bool,
    ) -> None:
        """Pass a worker's answer on."""
        if pending.done:
            if pending.trial is not None:
                pending.trial.copied(pending, status, body, json_length, spent, nonfinite)
            return
        if status == 200:
            assert pending.backend is not None
            latency = time.monotonic_ns() - pending.arrived
            pending.backend.counters.answered(latency, spent, nonfinite)
            self._close(pending)
            pending.asker.answer(200, body, json_length)
            if pending.route.trial is not None:
                pending.route.trial.saw(pending, body, json_length)
        else:
            self.finish(pending, status, body, json_length)

    def finish(self, pending: Pending, status: int, body: bytes, json_length: int) -> None:
        """Answer a request with an error, and count it where it was last."""
        if pending.done:
            return
        latency = time.monotonic_ns() - pending.arrived
        (pending.backend or pending.route.active).counters.refused(status, latency)
        self._close(pending)
        retry = RETRY_AFTER_S if status == 503 else 0
        pending.asker.answer(status, body, json_length, retry)

    def _close(self, pending: Pending) -> None:
        pending.done = True
        del self._open[pending]
        if self._quiet is not None and not self._open and not self._quiet.done():
            self._quiet.set_result(None)
        route = pending.route
        route.open -= 1
        now = time.monotonic_ns()
        gap = now - route.mark_ns
        route.max_gap_ns = max(route.max_gap_ns, gap)
        route.mark_ns = now

    def gone(self, pending: Pending) -> None:
        """Answer 404: the model has been withdrawn while the request waited."""
        text = f"There is no model {pending.route.model!r} any more."
        self.finish(pending, 404, problem(text, "unknown_model"), NO_JSON)

    async def quiet(self, patience_s: float) -> None:
        """Wait until no request is open, or for so many seconds."""
        if self._open:
            self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=patience_s)

    def replay(self, orphans: list[Pending], *, innocent: bool = False) -> None:
        """Ask again what a dead worker left unanswered.

        The first of them is the one it died on, for certain if it was asked alone; such a request
        is given up, so that it cannot take the standby down as well, and then the next worker.
        `innocent`: it died on something else.
        """
        for index, pending in enumerate(orphans):
            if not index and pending.alone and not innocent:
                text = "Two workers died on this request; it is not tried a third time."
                self.finish(pending, 500, problem(text, "worker_crashed"), NO_JSON)
                continue
            pending.alone = True
            if pending.backend is not None:
                pending.backend.counters.replayed += 1
            self.dispatch(pending)

    def _arm(self, deadline: int) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = deadline
        delay = max(_SWEEP_MIN_S, (deadline - time.monotonic_ns()) / 1e9)
        self._sweep_timer = self._loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        """Answer 504 to all whose time is up. Runs only while requests are open."""
        self._sweep_timer = None
        now = time.monotonic_ns()
        for pending in [one for one in self._open if one.deadline <= now]:
            self.finish(pending, 504, problem("The deadline has passed.", "deadline"), NO_JSON)
        for route in self.routes.values():
            route.waiting = [one for one in route.waiting if not one.done]
            trial = route.trial
            for backend in (route.active, route.standby, trial.backend if trial else None):
                if (
                    backend is not None
                    and backend.in_flight
                    and now - backend.progress_ns > self._timeout_ns
                ):
                    self._hung(backend)
        if self._open:
            self._arm(min(pending.deadline for pending in self._open))


def problem(text: str, code: str) -> bytes:
    """Return the body of an error."""
    return msgspec.json.encode({"error": text, "code": code})
