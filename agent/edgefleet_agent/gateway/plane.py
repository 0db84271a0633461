"""What is loaded and routed, and what happens when a worker dies: the gateway's state."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.gateway.counters import Counters
from edgefleet_agent.gateway.crashes import Crashes
from edgefleet_agent.gateway.deaths import DeathBook
from edgefleet_agent.gateway.launcher import Launcher
from edgefleet_agent.gateway.lending import Lending
from edgefleet_agent.gateway.outcomes import already, outcome_of, refused
from edgefleet_agent.gateway.router import Route, Router
from edgefleet_agent.gateway.trying import Trials
from edgefleet_agent.ipc.control import (
    DigestStats,
    Event,
    Flipped,
    ModelSpec,
    Outcome,
    WorkerInfo,
)
from edgefleet_agent.ipc.frames import Report

T = TypeVar("T")
_END_S = 2.0
_KEPT_COUNTERS = 64


class Plane:
    """Carries out what agentd asks for, and keeps routes alive without it.

    Args:
        launcher: Starts workers.
        queue_limit: Requests of one model that may be open at once.
        timeout_s: Deadline of a request that names none.
        lend_after: Requests in a row that make a connection worth lending; 0 = none is lent.
        deaths: What is known of earlier crashes.
    """

    def __init__(
        self,
        launcher: Launcher,
        queue_limit: int,
        timeout_s: float,
        lend_after: int,
        deaths: DeathBook,
    ) -> None:
        self._launcher, self._book = launcher, deaths
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loading: dict[str, asyncio.Task[Report]] = {}
        self._counters: dict[str, Counters] = {}
        self._closing = False
        self._throw_away: dict[str, set[asyncio.Future[None]]] = {}
        self.backends: dict[str, Backend] = {}
        self.router = Router(queue_limit, timeout_s, hung=Backend.kill)
        self.lending = Lending(self.router.routes, timeout_s, lend_after, queue_limit)
        self.trials = Trials(self.router.routes, self.backends)
        self.on_event: Callable[[Event], None] = lambda _: None
        self.sandbox: list[str] = []
        self._crashes = Crashes(
            launcher, deaths, self.router, self.backends,
            route_of=self._route_of, forget=self._forget, tell=self._tell,
        )  # fmt: skip

    # ------------------------------------------------------------------- loading

    async def prove(
        self,
        number: int,
        spec: ModelSpec,
        files: list[int],
        *,
        measure: bool = False,
        prepare_bytes: int = 0,
    ) -> Outcome:
        """Load, or prepare, in a throw-away worker; the descriptors are closed."""
        cancel: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._throw_away.setdefault(spec.digest, set()).add(cancel)
        try:
            started = await self._launcher.launch(
                spec,
                files,
                prove=True,
                measure=measure,
                prepare_bytes=prepare_bytes,
                cancel=cancel,
            )
        finally:
            _close(files)
            self._throw_away[spec.digest].discard(cancel)
            if not self._throw_away[spec.digest]:
                del self._throw_away[spec.digest]
        if not prepare_bytes:
            self._note_sandbox(spec, started.report)
        if started.report.ok:
            self._book.forgive(spec.digest)  # only a new assignment has something proved
        return outcome_of(number, started.report, 0)

    def cancel(self, number: int, digest: str) -> Outcome:
        """End the throw-away workers of a digest."""
        for cancel in self._throw_away.get(digest, ()):
            if not cancel.done():
                cancel.set_result(None)
        return Outcome(number, ok=True)

    async def load(self, number: int, spec: ModelSpec, files: list[int]) -> Outcome:
        """Start a worker; the descriptors are kept for as long as the digest is loaded."""
        backend = self.backends.get(spec.digest)
        if backend is not None and backend.quarantined:
            await self._forget(backend)  # asked for again by name: a new chance
            self._book.forgive(spec.digest)
            backend = None
        if why := self._book.of(spec.digest).why:
            _close(files)
            return refused(number, "quarantined", why)
        task = self._loading.get(spec.digest)
        if backend is None and task is None:
            task = self._start(self._load(spec, files))
            self._loading[spec.digest] = task
            task.add_done_callback(lambda _: self._loading.pop(spec.digest))
        else:
            _close(files)
        known = already(backend)
        report = await asyncio.shield(task) if task else known
        backend = self.backends.get(spec.digest)
        return outcome_of(number, report, backend.pid if backend else 0)

    async def _load(self, spec: ModelSpec, files: list[int]) -> Report:
        started = await self._launcher.launch_serving(spec, files)
        self._note_sandbox(spec, started.report)
        if started.link is None:
            _close(files)
            return started.report
        backend = Backend(spec, files, self._count(spec), self.router.answered, self._on_death)
        backend.deaths.extend(self._book.of(spec.digest).times)
        backend.attach(started)
        self.backends[spec.digest] = backend
        return started.report

    def _note_sandbox(self, spec: ModelSpec, report: Report) -> None:
        """Tell agentd what workers are shut in by, once and when it changes."""
        if report.sandbox and report.sandbox != self.sandbox:
            self.sandbox = report.sandbox
            self.on_event(Event("sandbox", spec.model, spec.digest, ", ".join(self.sandbox)))

    def _count(self, spec: ModelSpec) -> Counters:
        """Return the digest's counters; they outlive a release, so that none is lost to agentd."""
        counters = self._counters.pop(spec.digest, None) or Counters(spec)
        self._counters[spec.digest] = counters
        for digest in [d for d in self._counters if d not in self.backends][:-_KEPT_COUNTERS]:
            del self._counters[digest]
        return counters

    # ------------------------------------------------------------------- routes

    def flip(self, number: int, model: str, digest: str) -> Flipped | Outcome:
        """Route a model to a loaded digest, between two requests."""
        backend = self.backends.get(digest)
        if backend is None or backend.spec.model != model:
            return refused(number, "not_loaded", f"{digest} is not loaded for {model!r}.")
        if backend.quarantined:
            return refused(number, "quarantined", backend.quarantined)
        if not backend.ready:
            return refused(number, "not_ready", f"The worker of {digest} is being restarted.")
        route = self.router.routes.get(model)
        if route is None:
            self.router.routes[model] = Route(model, backend)
            return Flipped(number, previous="", in_flight=0)
        previous, there = route.active, self.backends.get(route.active.digest) is route.active
        if previous is not backend:
            route.end_trial()
            route.active, route.standby = backend, previous if there else None
            route.swaps += 1
            route.held = False
            self._refuse_pinned(route)
            if previous.loans is not None:
                previous.loans.recall()
            if backend.loans is not None:
                backend.loans.reopen()
            self.router.resume(route)
        name = previous.digest if there else ""
        return Flipped(number, previous=name, in_flight=previous.busy)

    def _refuse_pinned(self, route: Route) -> None:
        """Answer those who waited for a version by name that is gone."""
        for pending in list(route.waiting):
            pinned = pending.pinned
            if pinned is not None and self.backends.get(pinned.digest) is not pinned:
                route.waiting.remove(pending)
                self.router.gone(pending)

    async def hold(self, number: int, model: str, drain_s: float) -> Outcome:
        """End every worker of a model; its requests wait for the next flip."""
        route = self.router.routes.get(model)
        if route is not None:
            route.end_trial()
            route.held, route.standby = True, None
        mine = [b for b in self.backends.values() if b.spec.model == model]
        await asyncio.gather(*(backend.drained(drain_s) for backend in mine))
        for backend in mine:
            for pending in backend.take_orphans():
                self.router.dispatch(pending)  # it waits, and is no worker's fault
            await self._forget(backend)
        return Outcome(number, ok=True)

    def unroute(self, number: int, model: str) -> Outcome:
        """Answer 404 for a model; its workers finish what they have, then end."""
        route = self.router.routes.pop(model, None)
        if route is None:
            return Outcome(number, ok=True)
        waiting, route.waiting = route.waiting, []
        for pending in waiting:
            pending.backend = None
            self.router.gone(pending)
        for backend in [b for b in self.backends.values() if b.spec.model == model]:
            self._start(self._drain(backend, 10.0))
        return Outcome(number, ok=True)

    async def release(self, number: int, digest: str, drain_s: float) -> Outcome:
        """End a digest's worker after its requests; refused while the digest is routed."""
        backend = self.backends.get(digest)
        if backend is None:
            return Outcome(number, ok=True)
        route = self._route_of(backend)
        if route is not None and route.active is backend:
            return refused(number, "active", f"{digest} answers {route.model!r} now.")
        if route is not None and route.standby is backend:
            route.standby = None
        await self._drain(backend, drain_s)
        return Outcome(number, ok=True)

    async def _drain(self, backend: Backend, drain_s: float) -> None:
        await backend.drained(drain_s)
        route = self._route_of(backend)
        if route is None or route.active is not backend:
            await self._forget(backend)

    async def _forget(self, backend: Backend) -> None:
        if self.backends.get(backend.digest) is backend:
            del self.backends[backend.digest]
        orphans = backend.take_orphans()
        await backend.end(_END_S)  # takes its connections back
        self.router.replay(orphans)

    def _route_of(self, backend: Backend) -> Route | None:
        route = self.router.routes.get(backend.spec.model)
        if self.backends.get(backend.digest) is not backend:
            return None  # let go of; a restart that was under way has nothing to come back to
        return route if route and backend in {route.active, route.standby} else None

    # ------------------------------------------------------------------- crashes

    def _on_death(self, backend: Backend) -> None:
        if not self._closing:
            self._start(self._crashes.bury(backend))

    def _tell(self, event: Event) -> None:
        self.on_event(event)

    # ------------------------------------------------------------------- reading

    def role(self, backend: Backend) -> str:
        """Return `active`, `standby` or `idle`."""
        route = self._route_of(backend)
        if route is None:
            return "idle"
        return "active" if route.active is backend else "standby"

    def workers(self) -> list[WorkerInfo]:
        """Return every loaded digest; pid 0 = its worker is dead or quarantined."""
        return [
            WorkerInfo(
                b.spec.model,
                b.spec.version,
                b.digest,
                self.role(b),
                b.pid if b.ready else 0,
                b.counters.accelerated_pct,
            )
            for b in self.backends.values()
        ]

    def stats(self, *, restart_gaps: bool = True) -> list[DigestStats]:
        """Return the counters of every digest, also `released` ones.

        `restart_gaps` begins the longest gaps afresh, which is agentd's alone to do.
        """
        found = []
        for digest, counters in self._counters.items():
            backend = self.backends.get(digest)
            gap = 0
            role = self.role(backend) if backend else "released"
            if role == "active":
                route = self.router.routes[counters.spec.model]
                gap = route.max_gap_ns
                route.max_gap_ns *= not restart_gaps
            if backend is None:
                found.append(counters.read(role, 0, 0))
            else:
                found.append(backend.read(role, gap, restart_gaps=restart_gaps))
        return found

    # ------------------------------------------------------------------- the end

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self, drain_s: float) -> None:
        """Let open requests finish for up to `drain_s` seconds, then end every worker."""
        held = [backend for backend in self.backends.values() if backend.loans]
        await asyncio.gather(
            self.router.quiet(drain_s), *(backend.drained(drain_s) for backend in held)
        )
        self._closing = True
        for backend in self.backends.values():
            for fd in backend.files:
                os.close(fd)
            backend.files = []
        children = list(self._launcher.running)
        for child in children:
            child.kill()
        for child in children:
            await child.ended


def _close(files: Sequence[int]) -> None:
    for fd in files:
        os.close(fd)
