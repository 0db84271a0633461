"""A loaded version on trial: for a while it answers a share of a model's requests.

Which client is of the share is decided by a hash, so that each stays on one version. A trial is a
lease that agentd renews: without agentd it ends, and what was active answers everything. It ends as
well with the trial version's worker, and with any other move of the route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

from edgefleet_agent.gateway.outcomes import refused
from edgefleet_agent.ipc.control import Outcome

if TYPE_CHECKING:
    from edgefleet_agent.gateway.backend import Backend
    from edgefleet_agent.gateway.router import Route

_PARTS = 10_000


class Trial:
    """What answers a share, of how many, and until when.

    Args:
        backend: The version on trial.
        pct: Its share of the clients, in percent.
    """

    __slots__ = ("_salt", "_timer", "backend", "pct")

    def __init__(self, backend: Backend, pct: int) -> None:
        self.backend = backend
        self.pct = pct
        self._salt = backend.digest.encode()[-32:]  # another version is tried on other clients
        self._timer: asyncio.TimerHandle | None = None

    def takes(self, client: bytes) -> bool:
        """Return whether a client is of the share."""
        found = blake2b(client, digest_size=8, key=self._salt).digest()
        return int.from_bytes(found) % _PARTS < self.pct * (_PARTS // 100)

    def renew(self, lease_s: float, over: Callable[[], None]) -> None:
        """Go on for so many seconds from now; `over` is called if nobody renews it again."""
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(lease_s, over)

    def cancel(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Trials:
    """Begins, renews and ends trials for agentd.

    Args:
        routes: The router's.
        backends: What is loaded, by digest.
    """

    def __init__(self, routes: Mapping[str, Route], backends: Mapping[str, Backend]) -> None:
        self._routes, self._backends = routes, backends

    def share(self, number: int, model: str, digest: str, pct: int, lease_s: float) -> Outcome:
        """Let a loaded digest answer a share for so long; 0 % ends a model's trial."""
        route = self._routes.get(model)
        if pct <= 0:
            if route is not None:
                route.end_trial()
            return Outcome(number, ok=True)
        backend = self._backends.get(digest)
        if route is None or backend is None or backend.spec.model != model or not backend.ready:
            if route is not None:
                route.end_trial()
            return refused(number, "not_loaded", f"{digest} is not loaded for {model!r}.")
        if route.active is backend:
            return refused(number, "active", f"{digest} answers all of {model!r} already.")
        trial = route.trial
        if trial is None or trial.backend is not backend:
            route.end_trial()
            trial = route.trial = Trial(backend, pct)
            if route.active.loans is not None:
                route.active.loans.recall()  # a lent connection passes by whoever divides
        trial.pct = pct
        trial.renew(lease_s, lambda: self._over(route, trial))
        return Outcome(number, ok=True)

    @staticmethod
    def _over(route: Route, trial: Trial) -> None:
        if route.trial is trial:
            route.end_trial()
