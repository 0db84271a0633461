"""Swap, probation, rollback: from a loaded version to a good one, or back. Needs no cloud."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import msgspec

from edgefleet_agent import fabric, probation, swapping
from edgefleet_agent.gateway_client import GatewayLostError, GatewayRefusedError
from edgefleet_agent.ipc.control import DigestStats, ModelSpec
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.loading import Loading
from edgefleet_agent.recovery import last_good
from edgefleet_agent.swapping import Kind, Reading, Swap
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.histogram import difference
from edgefleet_shared.states import DeploymentEvent, DeploymentState
from edgefleet_shared.steps import Step

_E = DeploymentEvent
RESTART_S = 20.0
"""How long a route waits for a worker that the gateway is restarting."""
LOOKS = 40
"""How often a probation looks at the counters, at least every 2 s and at most every 0.2 s."""


class _Watch(NamedTuple):
    """A probation under way: when the route moved, and the counters just then."""

    deployment: str
    since: float
    before: Reading


class _After(NamedTuple):
    """Since when a new version has been watched for its receipt, and the counters just then."""

    since: float
    reading: Reading


class Activation:
    """Performs the steps from the swap on; each is journaled before it is done.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits; waiting then ends.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger, self._stop = tools, ledger, stop
        self._loading = Loading(tools, ledger, stop)
        self._watch: _Watch | None = None
        self._after: _After | None = None
        self._held_at = 0.0  # since when requests are held, 0 while they are not
        self._back: Swap | None = None  # a way back that the journal does not show yet

    def load(self, version: VersionRef, *, may_drain: bool = True) -> VersionRef:
        """Bring a stored version up beside what serves, if need be by its next best variant.

        Args:
            version: What to load.
            may_drain: Whether its stand-in may take the route, where an accelerator is full.

        Returns:
            The version with the variant that was loaded; the journal names that one too.

        Raises:
            UnavailableError: Not stored, or the gateway cannot (its code, of the last variant).
            TrustError: A stored blob has changed.
            GatewayLostError: The gateway went away.
        """
        spec = self._tools.spec(version)
        with (
            self._tools.verified(spec) as files,
            fabric.readied(
                self._tools, self._ledger, version, spec, files, may_drain=may_drain
            ) as fds,
        ):
            drains = not self._held_at and self._drains(version, spec)
            outcome = self._loading.load(
                version, spec, fds, (lambda: self._hold(version)) if drains else lambda: None
            )
            if outcome.ok:
                self._tools.hold(spec)
                self._ledger.ready_ms = outcome.ready_ms
                self._ledger.tell_share(spec.accelerator, outcome.accelerated_pct)
                return version
            if not version.alternates:
                raise GatewayRefusedError(
                    outcome.message or f"{version.model} {version.version} cannot be loaded.",
                    code=outcome.code,
                )
        following = self._ledger.take_next(version, outcome.code)
        return self.load(following, may_drain=may_drain)

    def route(self, version: VersionRef, kind: Kind, trigger: str = "") -> Swap:
        """Move the route to a version, loading it if need be; raises as `load`."""
        deployment, old = self._ledger.record.deployment, self._ledger.serving
        name = deployment.id if deployment else ""
        deadline, loaded = time.monotonic() + RESTART_S, False
        before = swapping.read(self._tools.gateway())
        while True:
            try:
                swap = swapping.flip(self._tools, name, old, version, kind, trigger, before)
                break
            except GatewayRefusedError as error:
                # Not loaded: load it. Being restarted: it will be ready in a moment.
                if error.code == "not_ready" and time.monotonic() < deadline:
                    time.sleep(0.1)
                elif loaded:
                    raise
                else:
                    version = self.load(version)
                    loaded = True
        self._ledger.serve(version)
        held, self._held_at = self._held_at, 0.0
        receipt = msgspec.structs.replace(
            swap.receipt,
            ready_ms=self._ledger.ready_ms,
            prepared=self._ledger.prepared,
            way="drain" if held else "overlap",
            pause_ms=int((time.monotonic() - held) * 1000) if held else 0,
        )
        return swap._replace(receipt=receipt)

    def fits_beside(self, version: VersionRef) -> bool:
        """Return whether memory is enough to keep a version warm beside what serves.

        Raises:
            UnavailableError: It is not stored, or the gateway went away.
            TrustError: Its manifest has changed.
        """
        return self._loading.admit(version, self._tools.spec(version), "refuse").way == "overlap"

    def _drains(self, version: VersionRef, spec: ModelSpec) -> bool:
        """Return whether what serves must end before a version is loaded."""
        deployment = self._ledger.record.deployment
        if self._ledger.serving is None:
            return False
        if deployment and deployment.drain and version.digest == deployment.target.manifest:
            return True
        return self._loading.admit(version, spec, "auto").way != "overlap"

    def _hold(self, version: VersionRef) -> None:
        """Hold the queue and end what serves; says first how long that is expected to take."""
        if self._held_at:
            return  # tried again without its prepared form; requests wait already
        expected = self._loading.expected_ms(version)
        text = "not known, for it was never loaded here" if expected is None else f"{expected} ms"
        self._ledger.tell(
            Step.ACTIVATE,
            "swap_pause",
            f"Requests wait while {version.version} takes the old one's place; expected: {text}.",
            expected_ms=expected,
        )
        deployment = self._ledger.record.deployment
        drain_s = deployment.target.policy.drain_s if deployment else 10
        self._held_at = time.monotonic()
        self._tools.gateway().hold(version.model, drain_s)
        self._ledger.serve(None)

    def swap(self) -> None:
        """From `staged` or `swapping` to `probation`; or back, if the route cannot move."""
        ledger = self._ledger
        new = ledger.deployment.staged
        assert new is not None
        if ledger.deployment.state is DeploymentState.STAGED:
            ledger.move(_E.SWAP)
        try:
            swap = self.route(new, "activate")
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            self.roll_back(error.code, str(error))
            return
        self.flipped(swap)
        self.measure_receipt(swap)

    def flipped(self, swap: Swap) -> None:
        """Write down that the route names the new version."""
        record = self._ledger.record
        assert record.deployment is not None
        new = record.deployment.staged
        # Flipped twice because a write failed in between: the old one is the active on disk.
        good = [v for v in (swap.old, record.active) if v and v.digest != record.given_up]
        previous = next((v for v in good if v != new), record.previous)
        self._watch = _Watch(record.deployment.id, time.monotonic(), swap.before)
        self._ledger.move(
            _E.SERVE, active=new, previous=previous, receipt=swap.receipt, given_up=""
        )

    def measure_receipt(self, swap: Swap) -> None:
        """Complete the pending receipt by what the swap did to requests; `settle_receipt` sends it.

        Raises:
            OSError: The journal cannot be written.
        """
        if self._ledger.record.receipt is None:
            return
        deployment = self._ledger.record.deployment
        drain_s = deployment.target.policy.drain_s if deployment else 10
        try:
            receipt, now = swapping.measure(self._tools, swap, drain_s)
        except GatewayLostError as error:
            self._ledger.tell(Step.ACTIVATE, error.code, str(error), level="warning")
            return
        self._ledger.write(receipt=receipt)
        self._after = _After(time.monotonic(), now)

    def settle_receipt(self) -> None:
        """Hand the pending receipt to the outbox, with what was seen since the swap."""
        receipt, after = self._ledger.record.receipt, self._after
        if receipt is None:
            return
        if after is not None:
            try:
                receipt = swapping.with_after(self._tools, receipt, after.reading)
            except GatewayLostError as error:
                self._ledger.tell(Step.ACTIVATE, error.code, str(error), level="warning")
        self._tools.outbox.add("receipts", receipt)
        self._ledger.write(receipt=None)
        self._after = None

    def _look_after(self) -> None:
        """Send the receipt once there is enough to tell how the new version answers.

        After a restart of agentd, a pending receipt gets the same time anew.
        """
        if self._ledger.record.receipt is None:
            return
        if self._after is None:
            self._after = _After(time.monotonic(), swapping.read(self._tools.gateway()))
        elif time.monotonic() - self._after.since >= swapping.AFTER_S:
            self.settle_receipt()

    def watch(self) -> bool:
        """Perform probation until a verdict.

        Returns:
            Whether it ended; False if `stop` was set first, to be called again.
        """
        policy = self._ledger.deployment.target.policy
        pause = min(2.0, max(0.2, policy.probation_s / LOOKS))
        while True:
            verdict = self._look()
            self._look_after()
            if verdict.kind == "fail":
                self.roll_back(verdict.trigger, verdict.detail)
                return True
            if verdict.kind != "wait":
                self.succeed(verdict)
                return True
            if self._stop.wait(pause):
                return False

    def succeed(self, verdict: probation.Verdict) -> None:
        """End probation well; the verdict says how sure that is."""
        self._watch = None
        self.settle_receipt()
        self._ledger.move(
            _E.SUCCEED, reason=verdict.trigger, detail=verdict.detail, verdict=verdict.kind
        )

    def roll_back(self, trigger: str, detail: str) -> None:
        """Go back to the last good version, or to none if there was none.

        Raises:
            GatewayLostError: The gateway went away; recovery goes on from `rolling_back`.
        """
        ledger, self._watch = self._ledger, None
        self.settle_receipt()  # of the swap that is undone
        if ledger.deployment.state is not DeploymentState.ROLLING_BACK:
            ledger.move(_E.ROLL_BACK, reason=trigger, detail=detail, verdict="fail")
        record = ledger.record
        assert record.deployment is not None
        good = last_good(record)
        done = [*record.quarantined, record.deployment.id]
        try:
            swap = self._return_to(good, trigger)
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            if ledger.serving is None:
                self._held_at = 0.0
                self._tools.gateway().unroute(ledger.name)  # nobody waits for what will not come
            ledger.move(
                _E.ROLLBACK_FAIL,
                reason=error.code,
                detail=str(error),
                quarantined=done,
                active=ledger.serving,
            )
            return
        ledger.move(
            _E.ROLLED_BACK,
            reason=trigger,
            detail=detail,
            active=good,
            previous=None,
            quarantined=done,
            receipt=swap.receipt if swap else None,
        )
        self._back = None
        if swap:
            self.measure_receipt(swap)
        self.settle_receipt()

    def _return_to(self, good: VersionRef | None, trigger: str) -> Swap | None:
        if good is None:
            self._tools.gateway().unroute(self._ledger.name)
            self._ledger.serve(None)
            return None
        if code := self._tools.why_not_serve(good.model, good.release_counter):
            self._tools.gateway().unroute(good.model)
            self._ledger.serve(None)
            raise GatewayRefusedError(
                f"{good.version} is below the security floor by now; nothing is served.",
                code=code,
            )
        if self._ledger.serving != good:
            self._back = self.route(good, "rollback", trigger)
        return self._back

    def _look(self) -> probation.Verdict:
        record = self._ledger.record
        assert record.deployment is not None
        assert record.active is not None
        stats = swapping.read(self._tools.gateway())
        watch = self._watch
        if watch is None or watch.deployment != record.deployment.id:
            # After a restart probation begins again; what was counted meanwhile counts.
            boot = self._tools.gateway().state.boot
            before = self._tools.telemetry.last_reading(boot)
            watch = self._watch = _Watch(record.deployment.id, time.monotonic(), before)
        old = record.previous
        return probation.judge(
            record.deployment.target.policy,
            time.monotonic() - watch.since,
            _sample(stats.get(old.digest)) if old else _NOTHING,
            _sample(stats.get(record.active.digest), watch.before.get(record.active.digest)),
        )


_NOTHING = probation.Sample()


def _sample(now: DigestStats | None, before: DigestStats | None = None) -> probation.Sample:
    if now is None:
        return _NOTHING
    if before is None or before.requests > now.requests:
        return probation.Sample(
            now.requests, now.server_errors, now.nonfinite, now.crashes, now.compute
        )
    return probation.Sample(
        now.requests - before.requests,
        now.server_errors - before.server_errors,
        now.nonfinite - before.nonfinite,
        now.crashes - before.crashes,
        difference(now.compute, before.compute),
    )
