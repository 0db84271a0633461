"""Swap, probation, rollback: from a loaded version to a good one, or back. Needs no cloud."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import msgspec

from edgefleet_agent import probation, stand_in, swapping
from edgefleet_agent.gateway_client import GatewayLostError, GatewayRefusedError
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.receipts import Receipts
from edgefleet_agent.recovery import last_good
from edgefleet_agent.routing import Routing
from edgefleet_agent.swapping import Reading, Swap
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.states import DeploymentEvent, DeploymentState

_E = DeploymentEvent
LOOKS = 40
"""How often a probation looks at the counters, at least every 2 s and at most every 0.2 s."""


class _Watch(NamedTuple):
    """A probation under way: when the route moved, and the counters just then."""

    deployment: str
    since: float
    before: Reading


class Activation:
    """Performs the steps from the swap on; each is journaled before it is done.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits; waiting then ends.

    Attributes:
        routing: Loads and flips.
        receipts: Measures what a swap did, and sends it.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger, self._stop = tools, ledger, stop
        self.routing = Routing(tools, ledger, stop)
        self.receipts = Receipts(tools, ledger)
        self._watch: _Watch | None = None
        self._back: Swap | None = None  # a way back that the journal does not show yet

    def swap(self) -> None:
        """From `staged` or `swapping` to `probation`; or back, if the route cannot move."""
        ledger = self._ledger
        new = ledger.deployment.staged
        assert new is not None
        if ledger.deployment.state is DeploymentState.STAGED:
            ledger.move(_E.SWAP)
        try:
            swap = self.routing.route(new, "activate")
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            self.roll_back(error.code, str(error))
            return
        self.receipts.measure(self.flipped(swap))

    def flipped(self, swap: Swap) -> Swap:
        """Write down that the route names the new version; return the swap, its receipt complete.

        What came before the flip, a canary share, belongs to the receipt.
        """
        record = self._ledger.record
        assert record.deployment is not None
        new = record.deployment.staged
        # Flipped twice because a write failed in between: the old one is the active on disk.
        good = [v for v in (swap.old, record.active) if v and v.digest != record.given_up]
        previous = next((v for v in good if v != new), record.previous)
        self._watch = _Watch(record.deployment.id, time.monotonic(), swap.before)
        receipt = msgspec.structs.replace(
            swap.receipt, shadow=record.deployment.shadow, canary=record.deployment.canary
        )
        self._ledger.move(_E.SERVE, active=new, previous=previous, receipt=receipt, given_up="")
        return swap._replace(receipt=receipt)

    def watch(self) -> bool:
        """Perform probation until a verdict.

        Returns:
            Whether it ended; False if `stop` was set first, to be called again.
        """
        policy = self._ledger.deployment.target.policy
        pause = min(2.0, max(0.2, policy.probation_s / LOOKS))
        while True:
            verdict = self._look()
            self.receipts.look()
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
        self.receipts.settle()
        record = self._ledger.record
        good = record.active is not None and record.active.digest == record.condemned
        self._ledger.move(
            _E.SUCCEED,
            reason=verdict.trigger,
            detail=verdict.detail,
            verdict=verdict.kind,
            condemned="" if good else record.condemned,
        )

    def roll_back(self, trigger: str, detail: str) -> None:
        """Go back to the last good version, or to none if there was none.

        Raises:
            GatewayLostError: The gateway went away; recovery goes on from `rolling_back`.
        """
        ledger, self._watch = self._ledger, None
        self.receipts.settle()  # of the swap that is undone
        if ledger.deployment.state is not DeploymentState.ROLLING_BACK:
            ledger.move(_E.ROLL_BACK, reason=trigger, detail=detail, verdict="fail")
        record = ledger.record
        assert record.deployment is not None
        good = last_good(record)
        done, failed = (
            [*record.quarantined, record.deployment.id],
            record.deployment.target.manifest,
        )
        try:
            swap = self._return_to(good, trigger)
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            if ledger.serving is None:
                self.routing.held_at = 0.0
                self._tools.gateway().unroute(ledger.name)  # nobody waits for what will not come
            ledger.move(
                _E.ROLLBACK_FAIL,
                reason=error.code,
                detail=str(error),
                quarantined=done,
                active=ledger.serving,
                condemned=failed if ledger.serving and ledger.serving.digest == failed else "",
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
            self.receipts.measure(swap)
        self.receipts.settle()

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
        if self._ledger.serving != good or stand_in.strayed(self._tools, self._ledger):
            self._back = self.routing.route(good, "rollback", trigger)
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
        active, old = record.active.digest, record.previous
        # What has failed its own probation is no yardstick for another's.
        yardstick = old.digest if old and old.digest != record.condemned else ""
        return probation.judge(
            record.deployment.target.policy,
            time.monotonic() - watch.since,
            swapping.sample(stats.get(yardstick)),
            swapping.sample(stats.get(active), watch.before.get(active)),
        )
