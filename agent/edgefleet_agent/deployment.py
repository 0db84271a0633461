"""From an accepted assignment to a loaded, proven version beside the one that serves."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from edgefleet_agent import fabric, variants
from edgefleet_agent.choosing import ONLY_ONE, Choice
from edgefleet_agent.errors import DeploymentError, ProofError
from edgefleet_agent.ipc.control import ModelSpec, Outcome
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.loading import Loading
from edgefleet_agent.measuring import StoppedError, measure, taken
from edgefleet_agent.quarantine import after_failure, barred
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import (
    IncompatibleError,
    InvalidInputError,
    TrustError,
    UnavailableError,
)
from edgefleet_shared.messages import SlotAssignment
from edgefleet_shared.package import Manifest, Variant
from edgefleet_shared.states import DONE, DeploymentEvent, DeploymentState
from edgefleet_shared.steps import Step

_E = DeploymentEvent


class Staging:
    """Performs the steps before the swap; each is journaled before it is done.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits; the work then ends where it stands.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger, self._stop = tools, ledger, stop
        self._loading = Loading(tools, ledger, stop)

    def run(self) -> bool:
        """Go from `accepted` to `staged`.

        Returns:
            Whether the deployment is staged; False if it ended, or `stop` was set.

        Raises:
            GatewayLostError: The gateway went away; the deployment resumes when it is back.
            OSError: The journal cannot be written.
        """
        while self._ledger.deployment.state not in DONE:
            if self._ledger.deployment.state is not DeploymentState.ACCEPTED:
                self._ledger.move(_E.RESUME)
                continue
            try:
                return self._once()
            except TrustError as error:
                # A stored blob has changed on disk; it is gone now and is fetched from zero.
                self._ledger.tell(Step.VERIFY, error.code, str(error), level="error")
        return False

    def _once(self) -> bool:
        target = self._ledger.deployment.target
        if code := self._tools.why_not_serve(target.model, target.release_counter):
            self._ledger.move(
                _E.REJECT,
                reason=code,
                detail="The publisher has raised the security floor above this version.",
            )
            return False
        failures, software = self._ledger.record.failures, self._tools.software
        if held := barred(failures, target.manifest, software):
            self._ledger.move(
                _E.REJECT,
                reason="quarantined",
                detail=f"It has failed its proof here ({held.reason}). Publish a new version.",
            )
            return False
        try:
            return self._fetch(target) and self._verify_and_load()
        except InvalidInputError as error:
            no_variant = error.code == "no_compatible_variant"
            event = _E.FIND_NO_VARIANT if no_variant else _E.REJECT
            self._ledger.move(event, reason=error.code, detail=str(error))
        except IncompatibleError as error:
            self._ledger.move(_E.REJECT, reason=error.code, detail=str(error))
        except ProofError as error:
            failures = after_failure(failures, target.manifest, error.code, software)
            self._ledger.move(_E.FAIL, reason=error.code, detail=str(error), failures=failures)
        except DeploymentError as error:
            self._ledger.move(_E.FAIL, reason=error.code, detail=str(error))
        except UnavailableError as error:
            if error.code == "gateway_lost":
                raise
            self._ledger.move(_E.FAIL, reason=error.code, detail=str(error))
        return False

    def _fetch(self, target: SlotAssignment) -> bool:
        self._ledger.move(_E.FETCH)
        if not self._bring([(target.manifest, target.size)]):
            return False
        manifest = self._tools.manifest(target.manifest, target.size)
        _check_same(manifest, target)
        found, refused = variants.candidates(manifest, self._tools.machine)
        if refused and len(found) == 1:
            self._tell_choice(Choice(target.manifest, [found[0].id], ONLY_ONE, refused=refused))
        version = _version(target, found, manifest)
        # Journaled before the blobs come, so that nothing tidies them away.
        self._take(version, ONLY_ONE if len(found) == 1 else "")
        if not self._bring(list(version.blobs.items())):
            return False
        return self._bring_images(version, only=len(found) == 1)

    def _bring_images(self, version: VersionRef, *, only: bool) -> bool:
        """Pull what is missing; where docker does not answer, another variant may run."""
        containers, progress = self._tools.containers, self._ledger.advance_progress
        return all(
            containers.bring(image, self._stop, progress)
            for image in version.images.values()
            if only or containers.can_run(image)
        )

    def _bring(self, blobs: list[tuple[str, int]]) -> bool:
        """Fetch what is missing; return False if `stop` came first."""
        store, base = self._tools.store, self._ledger.deployment.blobs
        total = sum(size for _, size in blobs)
        missing = [(digest, size) for digest, size in blobs if not store.has(digest, size)]
        done = total - sum(size for _, size in missing)
        self._ledger.advance_progress(done, total)
        store.make_room(sum(size for _, size in missing), self._tools.journal.needs())
        for digest, size in missing:

            def progress(got: int, before: int = done) -> None:
                self._ledger.advance_progress(before + got, total)

            by_hand = self._tools.inbox.bring(digest, size, self._stop)
            if not by_hand and not self._tools.fetcher.fetch(
                base, digest, size, self._stop, progress
            ):
                return False
            done += size
        self._ledger.advance_progress(total, total)
        return not self._stop.is_set()

    def _verify_and_load(self) -> bool:
        version = self._ledger.deployment.staged
        assert version is not None
        self._ledger.move(_E.VERIFY)
        if self._ledger.deployment.choice:
            loaded = self._prove_and_load(version)
        else:
            loaded = self._choose_and_load(version)
        if loaded:
            self._ledger.move(_E.STAGE)
        return loaded

    def _prove_and_load(self, version: VersionRef) -> bool:
        """Only one variant fits."""
        spec = self._tools.spec(version)
        with self._tools.verified(spec) as files:
            self._ledger.move(_E.PREPARE)
            if self._drains(version, spec, proving=True):
                return not self._stop.is_set()
            with fabric.readied(self._tools, self._ledger, version, spec, files) as fds:
                proof = self._loading.prove(version, spec, fds)
                if proof.code == "canceled":
                    return False
                self._tell(proof, Step.PROVE)
                if self._stop.is_set():
                    return False
                self._load(version, spec, fds)
        return not self._stop.is_set()

    def _choose_and_load(self, version: VersionRef) -> bool:
        """Measure what fits, take the best, and the next one where that cannot be loaded."""
        manifest = self._tools.manifest(version.digest, version.size)
        for one in variants.candidates(manifest, self._tools.machine)[0]:
            with self._tools.hashed(self._tools.spec(taken(version, one.id))):
                pass  # hashed: what has changed on disk is fetched again before anything is proved
        self._ledger.move(_E.PREPARE)
        try:
            choice = measure(self._tools, version, self._stop)
        except StoppedError:
            return False
        if not choice.order:
            failed = choice.measured[0]
            raise ProofError(failed.message or choice.reason, code=failed.code)
        self._tell_choice(choice)
        for index, variant in enumerate(choice.order):
            self._take(taken(version, variant, choice.order[index + 1 :]), choice.reason)
            staged = self._ledger.deployment.staged
            assert staged is not None
            spec = self._tools.spec(staged)
            try:
                with self._tools.verified(spec) as fds:
                    self._load(staged, spec, fds)
                break
            except ProofError as error:
                if variant == choice.order[-1]:
                    raise
                text = f"{variant} cannot be loaded ({error.code}); the next best is taken."
                self._ledger.tell(Step.PREPARE, "variant_failed", text, level="warning")
        return not self._stop.is_set()

    def _take(self, version: VersionRef, reason: str) -> None:
        """Write down which variant is taken, and why."""
        self._ledger.write(
            deployment=msgspec.structs.replace(
                self._ledger.deployment, staged=version, choice=reason
            )
        )

    def _tell_choice(self, choice: Choice) -> None:
        self._ledger.tell(
            Step.PREPARE,
            "variant_chosen",
            choice.reason,
            variant=choice.order[0],
            measured=[msgspec.to_builtins(one) for one in choice.measured],
            refused=choice.refused,
        )

    def _load(self, version: VersionRef, spec: ModelSpec, fds: Sequence[int]) -> None:
        self._loading.prepare(version, spec, fds)
        if self._stop.is_set() or self._drains(version, spec):
            return
        outcome = self._loading.load(version, spec, fds)
        self._tell(outcome, Step.PREPARE)
        self._tools.hold(spec)
        self._ledger.tell_share(spec.accelerator, outcome.accelerated_pct)
        self._ledger.ready_ms = outcome.ready_ms

    def _drains(self, version: VersionRef, spec: ModelSpec, *, proving: bool = False) -> bool:
        """Return whether the old version must end first, and write that down.

        Proving asks no more than whether a proof fits beside what serves; if not even that does,
        the load that follows the drain is the proof.

        Raises:
            DeploymentError: There is not memory enough (code `no_memory`), or no stand-in where
                the policy asks for one (`no_stand_in`); with the numbers.
        """
        policy = self._ledger.deployment.target.policy.swap
        wanted = proving and policy in {"drain", "stand_in"}
        if wanted and self._loading.admit(version, spec, "auto").way == "overlap":
            return False
        decision = self._loading.admit(version, spec, policy)
        if decision.way == "refuse":
            raise DeploymentError(decision.detail, code=decision.code)
        if decision.way == "overlap":
            return False
        stands = decision.way == "stand_in"
        after = msgspec.structs.replace(self._ledger.deployment, drain=True, stand_in=stands)
        self._ledger.write(deployment=after)
        self._ledger.tell(Step.PREPARE, "drain", f"The old version ends first. {decision.detail}")
        return True

    def _tell(self, outcome: Outcome, step: Step) -> None:
        if not outcome.ok:
            raise ProofError(
                outcome.message or "The gateway could not load the model.",
                code=outcome.code or "load_failed",
            )
        self._ledger.tell(
            step,
            "ready",
            f"loaded in {outcome.load_ms} ms, ready in {outcome.ready_ms} ms.",
            memory_kb=outcome.memory_kb,
            golden_ms=outcome.golden_ms,
        )


def _check_same(manifest: Manifest, target: SlotAssignment) -> None:
    got = (manifest.name, manifest.version, manifest.release_counter)
    if got != (target.model, target.version, target.release_counter):
        raise InvalidInputError(
            f"The manifest is of {manifest.name} {manifest.version}, not of {target.model} "
            f"{target.version}.",
            code="disagree",
        )


def _version(target: SlotAssignment, found: Sequence[Variant], manifest: Manifest) -> VersionRef:
    """Return the version with the files of candidates and fallbacks, the first of them taken."""
    stand_ins = {variant.fallback for variant in found}
    needed = [*found, *(variant for variant in manifest.variants if variant.id in stand_ins)]
    return VersionRef(
        model=target.model,
        version=target.version,
        digest=target.manifest,
        size=target.size,
        release_counter=target.release_counter,
        variant=found[0].id,
        blobs={entry.digest: entry.size for variant in needed for entry in variant.files},
        images={variant.id: variant.runtime.image for variant in needed if variant.runtime.image},
    )
