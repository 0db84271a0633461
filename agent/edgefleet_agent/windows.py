"""Before the flip: for a while the new version answers a share of the clients, and is judged.

The deployment is `staged` meanwhile: the new version is loaded and proved, the old one is routed
and answers whatever the share does not take. So whatever ends agentd, the gateway or the worker in
the midst of it, the old version serves, and the window begins anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Literal, NamedTuple

import msgspec

from edgefleet_agent import probation, swapping
from edgefleet_agent.gateway_client import GatewayLostError, GatewayRefusedError
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


class _Open(NamedTuple):
    """A window under way: since when, and the counters just then."""

    deployment: str
    since: float
    before: swapping.Reading


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
        if not (policy.canary_s and policy.canary_pct) or deployment.canary is not None:
            return True
        if new is None or old is None or old.digest == new.digest:
            return True  # nobody is there to compare it with
        try:
            if deployment.drain or not self._loaded(new):
                text = "No canary share: there is no memory for two versions at once."
                self._ledger.tell(Step.ACTIVATE, "canary_skipped", text, level="warning")
                return True
            return self._canary(policy, old, new)
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
        if deployment is not None and deployment.target.policy.canary_s:
            self._tools.gateway().canary(self._ledger.name, "", 0, LEASE_S)

    def _loaded(self, version: VersionRef) -> bool:
        """Load a version again that a restarted gateway lacks; False if it does not fit."""
        if any(worker.digest == version.digest for worker in self._tools.gateway().workers()):
            return True
        if not self._routing.fits_beside(version):
            return False
        return self._routing.load(version).digest == version.digest

    def _canary(self, policy: Policy, old: VersionRef, new: VersionRef) -> bool:
        """Give the new version its share until there is a verdict."""
        window = self._begin(policy, new)
        rules = msgspec.structs.replace(policy, probation_s=policy.canary_s)
        pause = min(2.0, max(0.2, policy.canary_s / LOOKS))
        try:
            while True:
                alive = self._renew(policy, new)
                now = swapping.read(self._tools.gateway())
                lived, tried = (
                    swapping.sample(now.get(one.digest), window.before.get(one.digest))
                    for one in (old, new)
                )
                known = swapping.sample(now.get(old.digest))
                verdict = probation.judge(rules, time.monotonic() - window.since, known, tried)
                if not alive and verdict.kind != "fail":
                    verdict = probation.Verdict("fail", "crashes", "Its worker has ended.")
                if verdict.kind != "wait":
                    break
                if self._stop.wait(pause):
                    return False
        finally:
            with contextlib.suppress(GatewayLostError):
                self._tools.gateway().canary(new.model, "", 0, LEASE_S)
        self._open = None
        return self._settle(verdict, _result(policy, verdict.kind, lived, tried))

    def _begin(self, policy: Policy, new: VersionRef) -> _Open:
        """Begin a window, or go on with the one that a command has come into."""
        deployment = self._ledger.deployment.id
        if self._open is None or self._open.deployment != deployment:
            text = f"{policy.canary_pct} % of the clients get {new.version}"
            self._ledger.hold("canary", f"{text} for {policy.canary_s} s.", level="info")
            before = swapping.read(self._tools.gateway())
            self._open = _Open(deployment, time.monotonic(), before)
        return self._open

    def _renew(self, policy: Policy, new: VersionRef) -> bool:
        try:
            self._tools.gateway().canary(new.model, new.digest, policy.canary_pct, LEASE_S)
        except GatewayRefusedError:
            return False
        return True

    def _settle(self, verdict: probation.Verdict, result: TrialResult) -> bool:
        """Write the verdict down: the version fails, or its result waits for the receipt."""
        ledger = self._ledger
        data = msgspec.to_builtins(result)
        if verdict.kind == "fail":
            ledger.tell(Step.ACTIVATE, "canary_failed", verdict.detail, level="error", canary=data)
            reason = f"canary_{verdict.trigger}"
            ledger.move(DeploymentEvent.FAIL, reason=reason, detail=verdict.detail, verdict="fail")
            return False
        after = msgspec.structs.replace(ledger.deployment, canary=result, reason="", detail="")
        ledger.write(deployment=after)
        ledger.tell(Step.ACTIVATE, "canary_passed", verdict.detail, canary=data)
        return True


def _result(
    policy: Policy,
    kind: Literal["pass", "fail", "inconclusive"],
    lived: probation.Sample,
    tried: probation.Sample,
) -> TrialResult:
    before, now = (quantile_ns(sample.compute, 0.5) for sample in (lived, tried))
    return TrialResult(
        pct=policy.canary_pct,
        seconds=policy.canary_s,
        verdict=kind,
        requests=tried.requests,
        server_errors=tried.server_errors,
        nonfinite=tried.nonfinite,
        crashes=tried.crashes,
        p50_us=None if now is None else now // 1000,
        live_requests=lived.requests,
        live_p50_us=None if before is None else before // 1000,
    )
