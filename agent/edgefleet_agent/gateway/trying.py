"""Begins, renews and ends trials for agentd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from edgefleet_agent.gateway.outcomes import refused
from edgefleet_agent.gateway.shadows import Shadow
from edgefleet_agent.gateway.trials import Trial
from edgefleet_agent.ipc.control import Outcome, Shadowed

if TYPE_CHECKING:
    from edgefleet_agent.gateway.backend import Backend
    from edgefleet_agent.gateway.router import Route

T = TypeVar("T", bound=Trial)


class Trials:
    """At most one trial a model.

    Args:
        routes: The router's.
        backends: What is loaded, by digest.
    """

    def __init__(self, routes: Mapping[str, Route], backends: Mapping[str, Backend]) -> None:
        self._routes, self._backends = routes, backends

    def share(self, number: int, model: str, digest: str, pct: int, lease_s: float) -> Outcome:
        """Let a loaded digest answer a share for so long; 0 % ends a model's trial."""
        if pct <= 0:
            if route := self._routes.get(model):
                route.end_trial()
            return Outcome(number, ok=True)
        found = self._find(number, Trial, model, digest, pct, lease_s)
        return found if isinstance(found, Outcome) else Outcome(number, ok=True)

    def shadow(
        self, number: int, model: str, digest: str, pct: int, lease_s: float
    ) -> Shadowed | Outcome:
        """Give a loaded digest copies of requests for so long; return what it has shown so far."""
        found = self._find(number, Shadow, model, digest, pct, lease_s)
        return found if isinstance(found, Outcome) else found.read(number)

    def _find(
        self, number: int, kind: type[T], model: str, digest: str, pct: int, lease_s: float
    ) -> T | Outcome:
        """Return the model's trial of that kind and digest, a new one if there is none."""
        route, backend = self._routes.get(model), self._backends.get(digest)
        if route is None or backend is None or backend.spec.model != model or not backend.ready:
            if route is not None:
                route.end_trial()
            return refused(number, "not_loaded", f"{digest} is not loaded for {model!r}.")
        if route.active is backend:
            return refused(number, "active", f"{digest} answers all of {model!r} already.")
        trial = route.trial
        if trial is None or type(trial) is not kind or trial.backend is not backend:
            route.end_trial()
            trial = route.trial = kind(backend, pct)
            if route.active.loans is not None:
                route.active.loans.recall()  # what is lent passes by whoever divides or copies
        trial.pct = pct
        trial.renew(lease_s, lambda: self._over(route, trial))
        return trial

    @staticmethod
    def _over(route: Route, trial: Trial) -> None:
        if route.trial is trial:
            route.end_trial()
