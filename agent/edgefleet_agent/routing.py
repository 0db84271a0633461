"""Load a version, making room for it if need be, and move the route to it."""

from __future__ import annotations

import threading
import time

import msgspec

from edgefleet_agent import fabric, stand_in, swapping
from edgefleet_agent.admission import Way
from edgefleet_agent.gateway_client import GatewayRefusedError
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.loading import Loading
from edgefleet_agent.swapping import Kind, Swap
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.messages import TakenWay
from edgefleet_shared.steps import Step

RESTART_S = 20.0
"""How long a route waits for a worker that the gateway is restarting."""


class Routing:
    """Brings versions up beside what serves, or in its place, and flips.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits.

    Attributes:
        held_at: Since when requests are held for a drain (monotonic seconds); 0: they are not.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger = tools, ledger
        self._loading = Loading(tools, ledger, stop)
        self.held_at = 0.0

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
            way = self._way(version, spec)
            outcome = self._loading.load(version, spec, fds, lambda: self._make_way(version, way))
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
        standing = self._ledger.stand_in
        before = standing.before if standing else swapping.read(self._tools.gateway())
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
                    loaded, standing = True, self._ledger.stand_in
                    before = standing.before if standing else before
        self._ledger.serve(version)
        held, self.held_at = self.held_at, 0.0
        self._ledger.stand_in = None
        way: TakenWay = "drain" if held else "stand_in" if standing else "overlap"
        receipt = msgspec.structs.replace(
            swap.receipt,
            ready_ms=self._ledger.ready_ms,
            prepared=self._ledger.prepared,
            way=way,
            pause_ms=int((time.monotonic() - held) * 1000) if held else 0,
            stand_in=standing.variant if standing else "",
        )
        return swap._replace(receipt=receipt, stand_in=standing.digest if standing else "")

    def fits_beside(self, version: VersionRef) -> bool:
        """Return whether memory is enough to keep a version warm beside what serves.

        Raises:
            UnavailableError: It is not stored, or the gateway went away.
            TrustError: Its manifest has changed.
        """
        return self._loading.admit(version, self._tools.spec(version), "refuse").way == "overlap"

    def _way(self, version: VersionRef, spec: ModelSpec) -> Way:
        """Return whether what serves must end before a version is loaded, and who answers then."""
        deployment = self._ledger.record.deployment
        if self._ledger.serving is None or self.held_at:
            return "overlap"
        if deployment and deployment.drain and version.digest == deployment.target.manifest:
            return "stand_in" if deployment.stand_in else "drain"
        return self._loading.admit(version, spec, "auto").way

    def _make_way(self, version: VersionRef, way: Way) -> None:
        """End what serves, if it must end; all that the new version needs is hashed and open."""
        if way == "overlap":
            return
        if way == "stand_in" and self._relieve(version):
            return
        deployment = self._ledger.record.deployment
        target = deployment.target if deployment else None
        # A way back is never refused: then requests wait.
        strict = target and target.policy.swap == "stand_in" and target.manifest == version.digest
        if way == "stand_in" and strict:
            raise GatewayRefusedError(
                f"The stand-in for {version.version} cannot be had; nothing has ended.",
                code="no_stand_in",
            )
        self._hold(version)

    def _relieve(self, version: VersionRef) -> bool:
        """Let a stand-in answer and end all else of this slot; return whether one answers."""
        ledger, client = self._ledger, self._tools.gateway()
        why = f"{version.version} takes its place"
        digest = stand_in.answer(self._tools, ledger, version, why)
        if not digest:
            return False
        deployment = ledger.record.deployment
        drain_s = deployment.target.policy.drain_s if deployment else 10
        for stats in client.stats():
            if stats.model == ledger.name and stats.role not in {"released", "active"}:
                client.release(stats.digest, drain_s)
        return True

    def _hold(self, version: VersionRef) -> None:
        """Hold the queue and end what serves; says first how long that is expected to take."""
        if self.held_at:
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
        self.held_at = time.monotonic()
        self._tools.gateway().hold(version.model, drain_s)
        self._ledger.serve(None)
