"""Bring a slot's last good version up from disk, or what can be had instead; never neither."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from edgefleet_agent import stand_in, swapping
from edgefleet_agent.activation import Activation
from edgefleet_agent.gateway_client import GatewayLostError, GatewayRefusedError
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.measuring import StoppedError, measure, taken
from edgefleet_agent.recovery import Plan
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.states import DeploymentState
from edgefleet_shared.steps import Step


class Healing:
    """What is done before anything else when agentd or the gateway comes up.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        activation: Loads and routes.
        stop: Set when a newer command waits.
    """

    def __init__(
        self, tools: Toolbox, ledger: Ledger, activation: Activation, stop: threading.Event
    ) -> None:
        self._tools, self._ledger = tools, ledger
        self._activation, self._stop = activation, stop
        self._refused = False  # the gateway knows that it crashed too often

    def bring_up(self, plan: Plan, running: Mapping[str, str], recovered: threading.Event) -> bool:
        """Perform a plan's first half: what must serve, what stands by.

        Args:
            plan: What to do.
            running: What the gateway has of this model: digest to role.
            recovered: Set as soon as something serves, or nothing can.

        Returns:
            False if the gateway has given up the version that it routes to.

        Raises:
            GatewayLostError: The gateway went away again.
        """
        self._ledger.serve(None)
        self._refused = False
        if plan.note == "fell_back" and plan.serve and self._forbidden(plan.serve):
            self._stop_serving(plan.serve)
            return True
        if plan.note == "fell_back" and plan.resume == "nothing":
            self._adopt(plan.serve)
        if plan.serve is None:
            return True
        if running.get(plan.serve.digest) == "active":
            self._ledger.serve(plan.serve)
            if self._given_up(plan.serve):
                return False
        elif not self._restore(plan.serve, recovered):
            return not self._refused
        if plan.note == "flipped":
            self._note_flip(plan.serve)
        standby = plan.standby
        if standby and standby.digest not in running and not self._forbidden(standby):
            try:
                if self._activation.routing.fits_beside(standby):
                    self._activation.routing.load(standby, may_drain=False)
            except GatewayLostError:
                raise
            except EdgeFleetError as error:
                self._tell(error)
        return True

    def bring_back(self) -> bool:
        """Serve the version again that a stand-in answers for; return whether there was one.

        Raises:
            UnavailableError: It cannot be had yet; the stand-in answers on.
        """
        serving = self._ledger.serving
        if serving is None or not stand_in.strayed(self._tools, self._ledger):
            return False
        self._activate(serving)
        return True

    def _given_up(self, version: VersionRef) -> bool:
        """Ask by a flip that changes nothing: events told while agentd was away are lost."""
        try:
            self._tools.gateway().flip(version.model, version.digest)
        except GatewayRefusedError as error:
            return error.code == "quarantined"
        return False

    def fall_back(self) -> None:
        """Go to the previous version because the gateway gave the active one up.

        Raises:
            GatewayLostError: The gateway went away.
        """
        record = self._ledger.record
        good = record.previous
        self._ledger.serve(record.active)
        if good is None or self._forbidden(good):
            given_up = record.active.digest if record.active else ""
            self._ledger.write(given_up=given_up)  # first: it must hold whatever ends us now
            self._stop_serving(good)
            return
        swap = self._activation.routing.route(good, "rollback", "crashes")
        self._ledger.write(active=good, previous=None, receipt=swap.receipt)
        self._activation.receipts.measure(swap)
        self._activation.receipts.settle()

    def repair(self, version: VersionRef) -> bool:
        """Fetch what the disk has changed under a version that the gateway gave up.

        Returns:
            Whether it serves again; False if its files are sound, so that it is its own fault.

        Raises:
            GatewayLostError: The gateway went away.
        """
        blobs = {version.digest: version.size, **version.blobs}
        if all(self._intact(digest, size) for digest, size in blobs.items()):
            return False
        text = "a file changed on disk while it was served."
        self._ledger.tell(Step.VERIFY, "blob_corrupt", text, level="error")
        return self._restore(version, threading.Event())

    def _stop_serving(self, forbidden: VersionRef | None) -> None:
        """Serve nothing: there is no version to go back to, or the floor is above it by now."""
        code, text = "not_serving", "There is no version to go back to; assign another."
        if forbidden:
            # The gateway, which knows no floors, may have gone back to it by itself.
            self._tools.gateway().unroute(self._ledger.name)
            code = "below_security_floor"
            text = f"{forbidden.version} is below the security floor by now; assign another."
        self._ledger.serve(None)
        self._ledger.tell(Step.INFER, code, text, level="error")

    def _restore(self, version: VersionRef, recovered: threading.Event) -> bool:
        """Load and route; if it cannot be loaded, let the previous version serve meanwhile."""
        try:
            version = self._measured_anew(version)
            self._activate(version)
        except GatewayLostError:
            raise
        except EdgeFleetError as error:
            self._tell(error)
            self._refused = error.code == "quarantined"
            if self._refused:
                return False
            damaged = error.code in {"blob_corrupt", "blob_missing"}
        else:
            return True
        record = self._ledger.record
        other = record.previous if version == record.active else record.active
        if other and other != version and not self._forbidden(other):
            try:
                self._activate(other)
            except GatewayLostError:
                raise
            except EdgeFleetError as error:
                self._tell(error)
        recovered.set()
        if self._failed_in_probation(version):
            return False
        return damaged and self._refetch(version)

    def _measured_anew(self, version: VersionRef) -> VersionRef:
        """Choose again among a version's variants where the machine has changed since."""
        if not version.alternates or self._tools.choices.find(version.digest):
            return version
        try:
            choice = measure(self._tools, version, self._stop)
        except (StoppedError, InvalidInputError):  # by the table nothing fits: then as it was
            return version
        if not choice.order or [version.variant, *version.alternates] == choice.order:
            return version
        after = taken(version, choice.order[0], choice.order[1:])
        self._ledger.exchange(version, after)
        text = f"The machine has changed; measured again: {choice.reason}"
        self._ledger.tell(Step.PREPARE, "variant_chosen", text, variant=after.variant)
        return after

    def _failed_in_probation(self, version: VersionRef) -> bool:
        deployment = self._ledger.record.deployment
        if (
            deployment is None
            or deployment.state is not DeploymentState.PROBATION
            or version != deployment.staged
        ):
            return False
        self._activation.roll_back("load_failed", "It could not be loaded again after a restart.")
        return True

    def _refetch(self, version: VersionRef) -> bool:
        """Fetch what has changed or vanished from the disk, from zero, and serve it again."""
        deployment = self._ledger.record.deployment
        if deployment is None:
            return False
        blobs = {version.digest: version.size, **version.blobs}
        for digest, size in blobs.items():
            if self._intact(digest, size):
                continue
            self._ledger.tell(Step.FETCH, "refetch", f"{digest} is fetched again.", level="warning")
            if not self._tools.fetcher.fetch(
                deployment.blobs, digest, size, self._stop, lambda _: None
            ):
                return False
        self._activate(version)
        return True

    def _intact(self, digest: str, size: int) -> bool:
        try:
            os.close(self._tools.store.open_verified(digest, size))
        except EdgeFleetError:
            return False
        return True

    def _activate(self, version: VersionRef) -> None:
        swap = self._activation.routing.route(version, "restore")
        self._tools.outbox.add("receipts", swap.receipt)

    def _forbidden(self, version: VersionRef) -> bool:
        return bool(self._tools.why_not_serve(version.model, version.release_counter))

    def _adopt(self, version: VersionRef | None) -> None:
        self._ledger.write(active=version, previous=None)
        self._ledger.tell(
            Step.ACTIVATE,
            "fell_back",
            "The gateway had gone back to the previous version by itself.",
            level="warning",
        )

    def _note_flip(self, version: VersionRef) -> None:
        old = self._ledger.record.active
        receipt = swapping.unmeasured(self._tools, self._ledger.deployment.id, old, version)
        self._activation.flipped(swapping.Swap(old, {}, receipt))
        self._activation.receipts.settle()

    def _tell(self, error: EdgeFleetError) -> None:
        self._ledger.tell(Step.ACTIVATE, error.code, str(error), level="error")
