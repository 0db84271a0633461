"""One slot's page in the journal: the only place where a deployment's state moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from edgefleet_agent.errors import DeploymentError
from edgefleet_agent.events import Emitter, Level
from edgefleet_agent.ipc.control import DigestStats
from edgefleet_agent.journal import Deployment, Journal, SlotRecord, VersionRef
from edgefleet_shared.messages import SlotAssignment, SlotReport
from edgefleet_shared.states import (
    DEPLOYMENT,
    DONE_NOT_OK,
    DeploymentEvent,
    DeploymentState,
    advance,
)
from edgefleet_shared.steps import Step

_S = DeploymentState
_STEPS = {
    _S.ACCEPTED: Step.RECEIVE,
    _S.DOWNLOADING: Step.FETCH,
    _S.VERIFYING: Step.VERIFY,
    _S.PREPARING: Step.PREPARE,
    _S.STAGED: Step.PROVE,
    _S.REJECTED: Step.VERIFY,
    _S.NO_COMPATIBLE_VARIANT: Step.PREPARE,
}
"""The word of a state's event; `activate` for the states from swapping on."""

PROGRESS_S = 1.0
MAX_ATTEMPTS = 28
"""Beyond it a deployment that never gets anywhere is given up (Mender's number)."""


class Standing(NamedTuple):
    """Who stands in: its digest and variant, and the gateway's counters just before it did."""

    digest: str
    variant: str
    before: Mapping[str, DigestStats]


class Ledger:
    """A slot's record, written before each action, and what is known of it in memory alone.

    Args:
        name: The slot.
        journal: The document.
        emitter: Told of every transition.
        stamp: Gives the device's time as RFC 3339 text.
        changed: Called after every change that a report should show.

    Attributes:
        serving: The version that the gateway's route names, as far as is known.
        progress: Bytes fetched and bytes to fetch of the deployment under way.
        ready_ms: What the last load took until it could serve.
        prepared: Whether the last load was from the prepared form.
        stand_in: Who answers, or has answered, for it until the next flip; for the receipt alone.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        emitter: Emitter,
        stamp: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self._journal, self._emitter = journal, emitter
        self._stamp, self._changed = stamp, changed
        self.serving: VersionRef | None = None
        self.progress = (0, 0)
        self.ready_ms = 0
        self.prepared = False
        self.stand_in: Standing | None = None
        self._progress_told = 0.0

    @property
    def record(self) -> SlotRecord:
        """The slot's record as it is on disk."""
        return self._journal.slot(self.name)

    @property
    def deployment(self) -> Deployment:
        """The deployment under way, or the last one.

        Raises:
            DeploymentError: There has never been one.
        """
        deployment = self.record.deployment
        if deployment is None:
            raise DeploymentError(f"Slot {self.name!r} has no deployment.", code="no_deployment")
        return deployment

    def begin(self, target: SlotAssignment, blobs: str) -> None:
        """Write down a new deployment, accepted."""
        last = self.record.deployment
        deployment = Deployment(
            id=target.deployment,
            target=target,
            blobs=blobs,
            state=_S.ACCEPTED,
            seq=last.seq + 1 if last else 1,
            since=self._stamp(),
        )
        self.progress = (0, 0)
        self.write(deployment=deployment)
        self.tell(Step.RECEIVE, "accepted", f"{_goal(target)} is accepted.")

    def move(
        self,
        event: DeploymentEvent,
        *,
        reason: str = "",
        detail: str = "",
        verdict: str = "",
        **record: Any,
    ) -> None:
        """Advance the deployment and, in the same write, change fields of the record.

        Raises:
            InvalidInputError: The table knows no such transition.
        """
        before = self.deployment
        state = advance(DEPLOYMENT, before.state, event)
        resumed = event is DeploymentEvent.RESUME
        after = msgspec.structs.replace(
            before,
            state=state,
            seq=before.seq + 1,
            attempt=before.attempt + resumed,
            since=self._stamp(),
            reason=reason,
            detail=detail[:1000],
            verdict=verdict or before.verdict,
        )
        self.write(deployment=after, **record)
        level: Level = "error" if state in DONE_NOT_OK else "info"
        step = _STEPS.get(state, Step.ACTIVATE)
        words = state.value.replace("_", " ")
        self.tell(step, state.value, f"{words}. {detail}".strip(), level=level, reason=reason)
        if resumed and after.attempt > MAX_ATTEMPTS:
            self.move(
                DeploymentEvent.FAIL,
                reason="too_many_attempts",
                detail=f"It was begun {MAX_ATTEMPTS} times and never came to an end.",
            )

    def hold(self, reason: str, detail: str, level: Level = "warning") -> None:
        """Say why the deployment waits where it is; nothing is written if that is said already."""
        before = self.deployment
        if (before.reason, before.detail) == (reason, detail):
            return
        waiting = msgspec.structs.replace(before, seq=before.seq + 1, reason=reason, detail=detail)
        self.write(deployment=waiting)
        self.tell(Step.ACTIVATE, reason, detail, level=level)

    def write(self, **changes: Any) -> None:
        """Replace fields of the record, durably."""
        self._journal.write(self.name, msgspec.structs.replace(self.record, **changes))
        self._changed()

    def serve(self, version: VersionRef | None) -> None:
        """Remember what the route names."""
        self.serving = version
        if version is None:
            self.stand_in = None
        self._changed()

    def hurry(self) -> None:
        """Let what was told go out now; an event by itself wakes nobody."""
        self._changed()

    def advance_progress(self, done: int, total: int) -> None:
        """Remember how far fetching is; told of at most once a second, and at the end."""
        self.progress = (done, total)
        now = time.monotonic()
        if done == total or now - self._progress_told >= PROGRESS_S:
            self._progress_told = now
            self._changed()

    def tell(
        self, step: Step, code: str, message: str, *, level: Level = "info", **data: Any
    ) -> None:
        """Emit an event of this slot and its deployment."""
        deployment = self.record.deployment
        self._emitter.tell(
            step,
            code,
            message,
            level=level,
            slot=self.name,
            deployment=deployment.id if deployment else "",
            digest=deployment.target.manifest if deployment else "",
            **{key: value for key, value in data.items() if value},
        )

    def take_next(self, version: VersionRef, code: str) -> VersionRef:
        """Write down that the variant of a version failed, and that its next best is taken."""
        after = msgspec.structs.replace(
            version, variant=version.alternates[0], alternates=version.alternates[1:]
        )
        self.exchange(version, after)
        self.tell(
            Step.PREPARE,
            "variant_failed",
            f"{version.variant} cannot be loaded ({code}); {after.variant} is taken.",
            level="warning",
        )
        return after

    def exchange(self, before: VersionRef, after: VersionRef) -> None:
        """Put one way to run a version in the place of another, wherever the journal names it."""
        record = self.record
        deployment = record.deployment
        if deployment is not None and deployment.staged == before:
            deployment = msgspec.structs.replace(deployment, staged=after)
        self.write(
            active=after if record.active == before else record.active,
            previous=after if record.previous == before else record.previous,
            deployment=deployment,
        )

    def tell_share(self, accelerator: str, accelerated_pct: int) -> None:
        """Say so if part of a model runs on the CPU that was built for something faster."""
        if accelerator != "cpu" and 0 <= accelerated_pct < 100:
            self.tell(
                Step.PREPARE,
                "cpu_fallback",
                f"{100 - accelerated_pct} % of the model's nodes run on the CPU, and not on the "
                f"{accelerator} that it is built for.",
                level="warning",
                accelerated_pct=accelerated_pct,
            )

    def report(self) -> SlotReport | None:
        """Return the slot as the fleet manager should see it; None before its first deployment."""
        record = self.record
        deployment = record.deployment
        if deployment is None:
            return None
        return SlotReport(
            deployment=deployment.id,
            attempt=deployment.attempt,
            seq=deployment.seq,
            state=deployment.state.value,
            active=self.serving.digest if self.serving else "",
            active_version=self.serving.version if self.serving else "",
            previous=record.previous.digest if record.previous else "",
            target=deployment.target.manifest,
            target_version=deployment.target.version,
            reason=deployment.reason,
            detail=deployment.detail,
            verdict=deployment.verdict,
            bytes_done=self.progress[0],
            bytes_total=self.progress[1],
            since=deployment.since,
            variant=deployment.staged.variant if deployment.staged and deployment.choice else "",
            choice=deployment.choice,
        )


def _goal(target: SlotAssignment) -> str:
    verb = "run" if target.mode == "run" else "stop"
    return f"To {verb} {target.model} {target.version}"
