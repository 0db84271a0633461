"""What becomes of a worker that has died: its requests, its successor, or its quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edgefleet_agent.gateway.backend import CRASHES, Backend
from edgefleet_agent.gateway.child import describe
from edgefleet_agent.gateway.deaths import DeathBook
from edgefleet_agent.gateway.launcher import Launcher
from edgefleet_agent.gateway.router import Route, Router
from edgefleet_agent.ipc.control import Event


class Crashes:
    """Buries workers.

    Args:
        launcher: Starts their successors.
        deaths: Where crashes are written down.
        router: Asks their requests again.
        backends: What is loaded, by digest.
        route_of: Returns where a backend is active or standby, if anywhere.
        forget: Lets go of a backend that is routed nowhere any more.
        tell: Takes events for agentd.
    """

    def __init__(
        self,
        launcher: Launcher,
        deaths: DeathBook,
        router: Router,
        backends: dict[str, Backend],
        *,
        route_of: Callable[[Backend], Route | None],
        forget: Callable[[Backend], Awaitable[None]],
        tell: Callable[[Event], None],
    ) -> None:
        self._launcher, self._book = launcher, deaths
        self._router, self._backends = router, backends
        self._route_of, self._forget, self._on_event = route_of, forget, tell

    async def bury(self, backend: Backend) -> None:
        """Find out how a worker died, replay its requests, and restart or quarantine it."""
        orphans = backend.take_orphans()
        route = self._route_of(backend)
        self._book.note(backend.digest, backend.deaths)
        if route is None:
            self._backends.pop(backend.digest, None)
        elif backend.crash_looping:
            self._quarantine(route, backend)
        if backend.loans:
            await backend.how_it_died()  # its copies of the connections are closed then
        self._router.replay(orphans, innocent=backend.bury_loans())
        status = await backend.how_it_died()
        self._tell("worker_died", backend, f"The worker {describe(status)}.")
        if route is None:
            await backend.end(0)
        elif backend.quarantined:
            self._tell_quarantined(route, backend)
        else:
            await self._respawn(backend)

    async def _respawn(self, backend: Backend) -> None:
        while True:
            share = backend.counters.accelerated_pct
            started = await self._launcher.launch_serving(backend.spec, backend.files, again=True)
            route = self._route_of(backend)
            if started.link is not None:
                backend.attach(started)
                if backend.spec.prepared and not started.report.prepared:
                    self._tell("prepared_unused", backend, started.report.note)
                if route is None:
                    await self._forget(backend)
                    return
                self._tell("restarted", backend, f"In {started.report.ready_ms} ms.")
                if 0 <= started.report.accelerated_pct < share:
                    text = f"It ran {share} % of its nodes on the accelerator, and runs "
                    text += f"{started.report.accelerated_pct} % since its restart."
                    self._tell("cpu_fallback", backend, text)
                self._router.resume(route)
                return
            backend.failed_to_start()
            self._book.note(backend.digest, backend.deaths)
            backend.forgo_prepared()  # perhaps it is the form that is at fault
            self._tell("worker_died", backend, f"No restart: {started.report.message}")
            if route is None:
                return
            corrupt = started.report.code == "blob_corrupt"
            if corrupt or backend.crash_looping:
                self._quarantine(route, backend, started.report.message if corrupt else "")
                self._router.resume(route)
                self._tell_quarantined(route, backend)
                return
            await asyncio.sleep(1.0)

    def _quarantine(self, route: Route, backend: Backend, why: str = "") -> None:
        name = f"{backend.spec.model} {backend.spec.version}"
        why = why or f"{name} died {CRASHES} times within a minute."
        backend.quarantined = f"{why} It is not restarted."
        self._book.note(backend.digest, backend.deaths, backend.quarantined)
        if route.standby is backend:
            route.standby = None
        elif route.standby is not None:
            route.active, route.standby = route.standby, None

    def _tell_quarantined(self, route: Route, backend: Backend) -> None:
        fallback = route.active.digest if route.active is not backend else ""
        self._tell("quarantined", backend, backend.quarantined, fallback)

    def _tell(self, code: str, backend: Backend, message: str, fallback: str = "") -> None:
        self._on_event(Event(code, backend.spec.model, backend.digest, message, fallback))
