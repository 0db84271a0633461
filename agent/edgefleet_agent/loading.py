"""Prove, prepare and load a stored version: what staging and recovery do alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import msgspec

from edgefleet_agent import stand_in
from edgefleet_agent.admission import Decision, Memory, decide, stricter
from edgefleet_agent.ipc.control import ModelSpec, Outcome
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.toolbox import Toolbox
from edgefleet_shared.messages import SwapWay
from edgefleet_shared.steps import Step

PERHAPS_THE_FORM = frozenset({"crashed", "load_timeout", "sandbox_violation"})
"""Ends of a load that leave no word; with a prepared form it may be the form's fault."""
LASTING = frozenset({"does_not_pay", "nothing_to_prepare", "prepared_differs"})
"""Why a version is not prepared, now and later; what else goes wrong is tried again."""
GROWTH = 3
"""A prepared form is seldom larger than so many times its package."""


class Loading:
    """Asks the gateway, with the prepared form where there is one.

    Args:
        tools: The shared parts.
        ledger: The slot's page.
        stop: Set when a newer command waits; proving and preparing then end.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger, stop: threading.Event) -> None:
        self._tools, self._ledger, self._stop = tools, ledger, stop

    def prove(self, version: VersionRef, spec: ModelSpec, fds: Sequence[int]) -> Outcome:
        """Load in a throw-away process, by the prepared form if there is one already.

        Raises:
            GatewayLostError: The gateway went away.
        """

        def ask(found: ModelSpec, descriptors: Sequence[int]) -> Outcome:
            return self._tools.gateway().prove(found, descriptors, stop=self._stop)

        return self._with_form(version, spec, fds, ask)

    def admit(self, version: VersionRef, spec: ModelSpec, policy: SwapWay) -> Decision:
        """Decide how to load a version, by what that will take and what memory there is.

        Raises:
            GatewayLostError: The gateway went away.
        """
        tools = self._tools
        prepared = tools.prepared.has(version)
        mine = [
            s for s in tools.gateway().stats() if s.model == version.model and s.role != "released"
        ]
        small = stand_in.find(tools, self._ledger, version)
        memory = Memory(
            needed=tools.measured.predict_kb(version, spec, prepared=prepared),
            available=tools.available_kb(),
            freed=sum(stats.memory_kb for stats in mine),
            reserve=tools.reserve_kb,
            stand_in=-1 if small is None else tools.measured.predict_kb(*small, prepared=False),
        )
        serving = any(stats.role == "active" for stats in mine)
        found = decide(policy, memory, serving=serving)
        there = self._device_memory(spec, small)
        return found if there is None else stricter(found, decide(policy, there, serving=serving))

    def _device_memory(self, spec: ModelSpec, small: stand_in.StandIn | None) -> Memory | None:
        """Return what a version takes of an accelerator's own memory; None where nobody tells."""
        offload = self._tools.offloads.get(spec.accelerator)
        free = offload.free_mb() if offload else -1
        if free < 0 or not spec.limits.device_memory_mb:
            return None
        active, freed = self._ledger.record.active, 0
        if active is not None:
            old = self._tools.spec(active)
            freed = old.limits.device_memory_mb if old.accelerator == spec.accelerator else 0
        stands = -1
        if small is not None:
            there = small.spec.accelerator == spec.accelerator
            stands = small.spec.limits.device_memory_mb * 1024 * there
        # Above the reserve already, which is others' and not ours to free.
        return Memory(spec.limits.device_memory_mb * 1024, free * 1024, freed * 1024, 0, stands)

    def expected_ms(self, version: VersionRef) -> int | None:
        """Return how long loading took here before; None if it never was loaded."""
        for prepared in (self._tools.prepared.has(version), False):
            if cost := self._tools.measured.cost(version, prepared=prepared):
                return cost.ready_ms
        return None

    def load(
        self,
        version: VersionRef,
        spec: ModelSpec,
        fds: Sequence[int],
        before: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Load, by the prepared form if there is one; one that cannot be used is thrown away.

        Args:
            version: What to load.
            spec: Its specification.
            fds: Descriptors of its files.
            before: Called when all is hashed and open, just before the gateway is asked.

        Raises:
            GatewayLostError: The gateway went away.
        """

        def ask(found: ModelSpec, descriptors: Sequence[int]) -> Outcome:
            before()
            return self._tools.gateway().load(found, descriptors)

        outcome = self._with_form(version, spec, fds, ask)
        self._ledger.prepared = outcome.prepared
        return outcome

    def _with_form(
        self,
        version: VersionRef,
        spec: ModelSpec,
        fds: Sequence[int],
        ask: Callable[[ModelSpec, Sequence[int]], Outcome],
    ) -> Outcome:
        """Ask with the prepared form, and without one that cannot be used: it is thrown away."""
        tools = self._tools
        with tools.prepared.opened(version) as found:
            if found is None:
                outcome = ask(spec, fds)
            else:
                form, more = found
                prepared = msgspec.structs.replace(spec, prepared=form)
                outcome = ask(prepared, [*fds, *more])
                if outcome.code in PERHAPS_THE_FORM:
                    self._distrust(version, outcome.message)
                    outcome = ask(spec, fds)
                elif outcome.note:
                    self._distrust(version, outcome.note)
                else:
                    tools.prepared.used(version)
        tools.measured.note(version, outcome)
        return outcome

    def _distrust(self, version: VersionRef, why: str) -> None:
        self._tools.prepared.forget(version)
        text = f"The prepared form of {version.version} is thrown away: {why}"
        self._ledger.tell(Step.PREPARE, "prepared_dropped", text, level="warning")

    def prepare(self, version: VersionRef, spec: ModelSpec, fds: Sequence[int]) -> None:
        """Make the version's prepared form if there is none; what goes wrong is told, no more.

        Raises:
            GatewayLostError: The gateway went away.
        """
        tools = self._tools
        if spec.container is not None or not tools.prepared.lacks(version):
            return
        try:
            wanted = GROWTH * sum(version.blobs.values())
            room = tools.prepared.room(wanted, {one.digest for one in tools.journal.versions()})
            if room <= 0:
                self._ledger.tell(Step.PREPARE, "prepared_no_room", "No disk is left to prepare.")
                return
            with tools.prepared.targets() as made:
                outcome = tools.gateway().prepare(
                    spec, [*fds, *(fd for fd, _ in made)], room, self._stop
                )
                if outcome.ok:
                    size = tools.prepared.keep(version, outcome.maker, made)
                    text = f"prepared: {size} bytes, loaded in {outcome.load_ms} ms by processor."
                    self._ledger.tell(Step.PREPARE, "prepared", text, bytes=size)
                    self._ledger.hurry()
                    return
            if outcome.code in LASTING:
                tools.prepared.refuse(version, outcome.code)
            text = f"not prepared ({outcome.code}). {outcome.message}".strip()
            self._ledger.tell(Step.PREPARE, "not_prepared", text, level="debug")
        except OSError as error:
            text = f"not prepared: {error}."
            self._ledger.tell(Step.PREPARE, "not_prepared", text, level="warning")
