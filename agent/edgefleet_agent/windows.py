"""Before the flip: the new version gets copies of requests, then a share of the clients; judged.

The deployment is `staged` meanwhile: the new version is loaded and proved, the old one is routed
and answers whatever a share does not take. So whatever ends agentd, the gateway or the worker in
the midst of a window, the old version serves, and the window begins anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Literal, NamedTuple

import msgspec

from edgefleet_agent import probation, swapping
from edgefleet_agent.gateway_client import GatewayLostError, GatewayRefusedError
from edgefleet_agent.ipc.control import Shadowed
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.routing import Routing
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.histogram import quantile_ns
from edgefleet_shared.messages import Policy, TrialResult
from edgefleet_shared.states import DeploymentEvent
from edgefleet_shared.steps import Step

LEASE_S = 10
"""How long the gateway goes on with a share without a word from agentd."""
LOOKS = 40
"""How often a window looks at the counters, at least every 2 s and at most every 0.2 s."""


Kind = Literal["shadow", "canary"]


class _Plan(NamedTuple):
    """A window that a policy asks for."""

    kind: Kind
    seconds: int
    pct: int

    def begun(self, version: str) -> str:
        """Return the sentence that tells it."""
        what = "the requests are copied to" if self.kind == "shadow" else "the clients get"
        return f"{self.pct} % of {what} {version} for {self.seconds} s."


class _Open(NamedTuple):
    """A window under way: of which deployment, since when, and the counters just then."""

    deployment: str
    kind: Kind
    since: float
    before: swapping.Reading


class _Seen(NamedTuple):
    """What a window has shown so far; `shown` None: the version's worker has ended."""

    lived: probation.Sample
    tried: probation.Sample
    shown: Shadowed | None


class Windows:
    """Holds the windows of a staged version.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        routing: Loads what a gateway has lost.
        stop: Set when a newer command waits; a window then ends without a verdict.
    """

    def __init__(
        self, tools: Toolbox, ledger: Ledger, routing: Routing, stop: threading.Event
    ) -> None:
        self._tools, self._ledger = tools, ledger
        self._routing, self._stop = routing, stop
        self._open: _Open | None = None

    def passed(self) -> bool:
        """Hold what the policy asks for.

        Returns:
            Whether the version may be swapped in; else it has failed, or `stop` was set.

        Raises:
            GatewayLostError: The gateway went away, and the share with it.
        """
        deployment, old = self._ledger.deployment, self._ledger.serving
        policy, new = deployment.target.policy, deployment.staged
        plans = [
            _Plan("shadow", policy.shadow_s, policy.shadow_pct),
            _Plan("canary", policy.canary_s, policy.canary_pct),
        ]
        due = [
            plan
            for plan in plans
            if plan.seconds and plan.pct and getattr(deployment, plan.kind) is None
        ]
        if not due or new is None or old is None or old.digest == new.digest:
            return True  # nothing is asked for, or nobody is there to compare it with
        try:
            if deployment.drain or not self._loaded(new):
                text = "There is no memory for two versions at once."
                for plan in due:
                    self._ledger.tell(Step.ACTIVATE, f"{plan.kind}_skipped", text, level="warning")
                return True
            return all(self._held(plan, policy, old, new) for plan in due)
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            self._ledger.move(DeploymentEvent.FAIL, reason=error.code, detail=str(error))
            return False

    def end(self) -> None:
        """End a share that another agentd may have left in the gateway; a window begins anew.

        Raises:
            GatewayLostError: The gateway went away.
        """
        self._open = None
        deployment = self._ledger.record.deployment
        policy = deployment.target.policy if deployment else Policy()
        if policy.canary_s or policy.shadow_s:
            self._tools.gateway().canary(self._ledger.name, "", 0, LEASE_S)

    def _loaded(self, version: VersionRef) -> bool:
        """Load a version again that a restarted gateway lacks; False if it does not fit."""
        if any(worker.digest == version.digest for worker in self._tools.gateway().workers()):
            return True
        if not self._routing.fits_beside(version):
            return False
        return self._routing.load(version).digest == version.digest

    def _held(self, plan: _Plan, policy: Policy, old: VersionRef, new: VersionRef) -> bool:
        """Hold one window until there is a verdict; return whether it is none against it."""
        window = self._begin(plan, new)
        pause = min(2.0, max(0.2, plan.seconds / LOOKS))
        try:
            while True:
                known, seen = self._look(plan, window, old, new)
                elapsed = time.monotonic() - window.since
                verdict = _judge(plan, policy, elapsed, known, seen)
                if verdict.kind != "wait":
                    break
                if self._stop.wait(pause):
                    return False
        finally:
            # A shadow answers nobody: what interrupts its window may leave it to its lease.
            if plan.kind == "canary" or not self._stop.is_set():
                with contextlib.suppress(GatewayLostError):
                    self._tools.gateway().canary(new.model, "", 0, LEASE_S)
        self._open = None
        return self._settle(plan.kind, verdict, _result(plan, verdict.kind, seen))

    def _begin(self, plan: _Plan, new: VersionRef) -> _Open:
        """Begin a window, or go on with the one that a command has come into."""
        deployment = self._ledger.deployment.id
        if self._open is None or self._open[:2] != (deployment, plan.kind):
            self._ledger.hold(plan.kind, plan.begun(new.version), level="info")
            before = swapping.read(self._tools.gateway())
            self._open = _Open(deployment, plan.kind, time.monotonic(), before)
        return self._open

    def _look(
        self, plan: _Plan, window: _Open, old: VersionRef, new: VersionRef
    ) -> tuple[probation.Sample, _Seen]:
        """Renew the lease; return what the old version ever answered, and what the window shows."""
        shown: Shadowed | None
        try:
            if plan.kind == "shadow":
                shown = self._tools.gateway().shadow(new.model, new.digest, plan.pct, LEASE_S)
            else:
                self._tools.gateway().canary(new.model, new.digest, plan.pct, LEASE_S)
                shown = Shadowed(0)
        except GatewayRefusedError:
            shown = None
        now = swapping.read(self._tools.gateway())
        lived, tried = (
            swapping.sample(now.get(one.digest), window.before.get(one.digest))
            for one in (old, new)
        )
        if plan.kind == "shadow" and shown is not None:
            tried = probation.Sample(
                shown.requests, shown.errors, shown.nonfinite, tried.crashes, shown.compute
            )
        return swapping.sample(now.get(old.digest)), _Seen(lived, tried, shown)

    def _settle(self, kind: Kind, verdict: probation.Verdict, result: TrialResult) -> bool:
        """Write the verdict down: the version fails, or its result waits for the receipt."""
        ledger = self._ledger
        data = {kind: msgspec.to_builtins(result)}
        if verdict.kind == "fail":
            ledger.tell(Step.ACTIVATE, f"{kind}_failed", verdict.detail, level="error", **data)
            reason = f"{kind}_{verdict.trigger}"
            ledger.move(DeploymentEvent.FAIL, reason=reason, detail=verdict.detail, verdict="fail")
            return False
        shown = {kind: result}
        after = msgspec.structs.replace(ledger.deployment, **shown, reason="", detail="")
        ledger.write(deployment=after)
        ledger.tell(Step.ACTIVATE, f"{kind}_passed", verdict.detail, **data)
        return True


def _judge(
    plan: _Plan, policy: Policy, elapsed_s: float, known: probation.Sample, seen: _Seen
) -> probation.Verdict:
    """Judge by the limits of probation, and in the shadow by how many answers agree."""
    rules = msgspec.structs.replace(policy, probation_s=plan.seconds)
    verdict = probation.judge(rules, elapsed_s, known, seen.tried)
    shown = seen.shown
    if verdict.kind == "fail":
        return verdict
    if shown is None:
        return probation.Verdict("fail", "crashes", "Its worker has ended.")
    least = policy.min_agreement_pct
    if verdict.kind == "wait" or not least or shown.compared < max(1, policy.min_requests):
        return verdict
    if 100 * shown.agreed < least * shown.compared:
        detail = f"{shown.agreed} of {shown.compared} answers agree; {least} % must."
        return probation.Verdict("fail", "agreement", detail)
    return verdict


def _result(
    plan: _Plan, verdict: Literal["pass", "fail", "inconclusive"], seen: _Seen
) -> TrialResult:
    lived, tried, shown = seen.lived, seen.tried, seen.shown or Shadowed(0)
    before, now = (quantile_ns(sample.compute, 0.5) for sample in (lived, tried))
    return TrialResult(
        pct=plan.pct,
        seconds=plan.seconds,
        verdict=verdict,
        requests=tried.requests,
        server_errors=tried.server_errors,
        nonfinite=tried.nonfinite,
        crashes=tried.crashes,
        p50_us=None if now is None else now // 1000,
        live_requests=lived.requests,
        live_p50_us=None if before is None else before // 1000,
        compared=shown.compared,
        agreed=shown.agreed,
        dropped=shown.dropped,
        max_difference_ppm=shown.max_difference_ppm,
    )
