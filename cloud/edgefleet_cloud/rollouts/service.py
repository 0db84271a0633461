"""What operators can do with rollouts. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.database import after_commit, reason_of
from edgefleet_cloud.errors import ForbiddenError, NotFoundError
from edgefleet_cloud.filters import parse
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_cloud.ports import Clock
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.decide import WITHDRAWABLE, failures, silent
from edgefleet_cloud.rollouts.driver import Driver, describe_wave
from edgefleet_cloud.rollouts.planning import Plan, Planner
from edgefleet_cloud.rollouts.schemas import NewRollout, policy_json
from edgefleet_cloud.rollouts.slots import Goal, Slots
from edgefleet_cloud.rollouts.tables import (
    FORWARD,
    ROLLBACK,
    DeploymentRow,
    RolloutRow,
    WaveRow,
)
from edgefleet_shared.identifiers import new_id
from edgefleet_shared.states import (
    DONE_OK,
    DeploymentEvent,
    DeploymentState,
    RolloutEvent,
    RolloutState,
    WaveState,
)
from edgefleet_shared.times import format_time

_S = DeploymentState
_SWAPPED = DONE_OK | {_S.SWAPPING, _S.PROBATION}


class Rollouts:
    """Rollouts and device deployments.

    Args:
        planner: Chooses devices and waves.
        slots: Changes what devices should run.
        driver: Moves rollouts from state to state.
        wake: Called with a rollout's id after a commit that gives its controller work.
        clock: Dates what is created.
    """

    def __init__(
        self,
        planner: Planner,
        slots: Slots,
        driver: Driver,
        wake: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._planner = planner
        self._slots = slots
        self._driver = driver
        self._wake = wake
        self.clock = clock

    def plan(self, session: Session, wish: NewRollout, scope: Scope = None) -> Plan:
        """Return what a rollout would do.

        Raises:
            InvalidInputError: It cannot be made; see `Planner.plan`.
        """
        return self._planner.plan(session, wish, new_id(), scope)

    def create(
        self, session: Session, wish: NewRollout, actor: str, scope: Scope = None
    ) -> RolloutRow:
        """Make a rollout, its waves frozen, and start it unless the wish says otherwise.

        No device outside of the scope is in a wave.

        Raises:
            InvalidInputError: It cannot be made; see `Planner.plan`.
        """
        rollout = new_id()
        plan = self._planner.plan(session, wish, rollout, scope)
        release, policy = plan.release, policy_json(wish.policy)
        row = RolloutRow(
            id=rollout,
            created=format_time(self.clock()),
            model=release.model,
            version=release.version,
            manifest=release.manifest,
            size=release.size,
            release_counter=release.release_counter,
            state=RolloutState.DRAFT.value,
            reason=wish.reason or reason_of(session),
            actor=actor,
            gate=wish.gate.model_dump(),
            policy=policy,
            selection=wish.model_dump(include={"group", "selector", "devices"}),
        )
        session.add(row)
        session.flush()
        goal = Goal.of_release(release, policy)
        for position, (wave, gate) in enumerate(zip(wish.waves, wish.gates(), strict=True)):
            session.add(
                WaveRow(
                    rollout=rollout,
                    position=position,
                    name=wave.name,
                    state=WaveState.WAITING.value,
                    gate=gate.model_dump(),
                )
            )
            for device in plan.members[position]:
                session.add(self._slots.new(device, FORWARD, goal, rollout=rollout, wave=position))
        session.flush()
        sizes = {w.name: len(plan.members[n]) for n, w in enumerate(wish.waves)}
        self._driver.tell_created(session, row, sizes)
        if wish.start:
            self.start(session, row, wish.reason, actor)
        return row

    def start(self, session: Session, row: RolloutRow, reason: str, actor: str) -> None:
        """Start a draft; older rollouts of the model lose the devices they share with it.

        Raises:
            InvalidInputError: code `transition`: it is no draft.
        """
        self._change(session, row, RolloutEvent.START, reason, actor)
        devices = {member.device for member in repository.members(session, row.id)}
        losing = repository.open_deployments(session, row.model, devices, but=row.id)
        for old in losing:
            if _S(old.state) in WITHDRAWABLE:
                self._slots.withdraw(
                    session, old, DeploymentEvent.SUPERSEDE, f"rollout {row.id}", actor
                )
        for rollout in sorted({old.rollout for old in losing}):
            self._retire(session, rollout, row, actor)

    def pause(self, session: Session, row: RolloutRow, reason: str, actor: str) -> None:
        """Offer nothing until it is resumed; devices under way go on.

        Raises:
            InvalidInputError: code `transition`.
        """
        self._change(session, row, RolloutEvent.PAUSE, reason, actor, "manual")

    def resume(self, session: Session, row: RolloutRow, reason: str, actor: str) -> None:
        """Go on; failures seen until now are acknowledged and only further ones count.

        Deadlines of released waves begin anew. After a pause for lack of evidence the wave may
        pass without it.

        Raises:
            InvalidInputError: code `transition`.
        """
        code = row.pause_code
        view = self._driver.view(session, row)
        self._change(session, row, RolloutEvent.RESUME, reason, actor)
        now = format_time(self.clock())
        for wave, seen in zip(repository.waves(session, row.id), view.waves, strict=True):
            before = describe_wave(wave)
            wave.acknowledged = max(wave.acknowledged, failures(seen))
            if wave.state == WaveState.FAILED.value:
                wave.state, wave.reason = WaveState.RELEASING.value, ""
            if wave.state == WaveState.RELEASING.value:
                wave.released = now
                wave.waived = wave.waived or code == "gate_inconclusive"
            session.add(wave)
            if describe_wave(wave) != before:
                self._driver.tell_wave(session, row, wave, before, actor)

    def stop(self, session: Session, row: RolloutRow, reason: str, actor: str) -> None:
        """End it: what was not swapped is withdrawn, what serves goes on serving.

        Raises:
            InvalidInputError: code `transition`.
        """
        self._change(session, row, RolloutEvent.STOP, reason, actor)

    def roll_back(self, session: Session, row: RolloutRow, reason: str, actor: str) -> None:
        """Take every device that swapped back to its own previous version, as a new revision.

        Raises:
            InvalidInputError: code `transition`.
        """
        self._change(session, row, RolloutEvent.ROLL_BACK, reason, actor)
        for member in repository.members(session, row.id):
            slot = repository.desired_slot(session, member.device, member.model)
            mine = slot is not None and slot.deployment == member.id
            if not mine or _S(member.state) not in _SWAPPED:
                continue
            before = Goal(**member.before) if member.before else Goal.of_row(member, "stop")
            if before.mode == "run" and before.manifest == member.manifest:
                continue
            back = self._slots.new(
                member.device, ROLLBACK, before, rollout=row.id, reason="rollback"
            )
            self._slots.offer(session, back, actor)

    def get(self, session: Session, rollout: str, scope: Scope = None) -> RolloutRow:
        """Return a rollout that has a device within the scope.

        Raises:
            NotFoundError: There is none of this id, or none that the scope may see.
        """
        row = repository.find(session, rollout, scope)
        if row is None:
            raise NotFoundError(
                f"There is no rollout {rollout[:80]!r}.", hint="GET /v1/rollouts lists them."
            )
        return row

    def held(self, session: Session, rollout: str, scope: Scope) -> RolloutRow:
        """Return a rollout that the holder of a scope may steer: all its devices are within.

        Raises:
            NotFoundError: There is none of this id, or none that the scope may see.
            ForbiddenError: Some of its devices are outside (code `outside_scope`).
        """
        row = self.get(session, rollout, scope)
        if count := repository.outside(session, rollout, scope):
            raise ForbiddenError(
                f"{count} devices of this rollout are outside of your scope.",
                code="outside_scope",
                hint="Somebody whose scope holds all of them may steer it.",
            )
        return row

    def deployment(self, session: Session, deployment: str, scope: Scope = None) -> DeploymentRow:
        """Return a device deployment.

        Raises:
            NotFoundError: There is none of this id within the scope.
        """
        row = repository.find_deployment(session, deployment, scope)
        if row is None:
            raise NotFoundError(
                f"There is no device deployment {deployment[:80]!r}.",
                hint="GET /v1/device-deployments lists them.",
            )
        return row

    def page(
        self, session: Session, query: PageQuery, scope: Scope = None
    ) -> tuple[Sequence[RolloutRow], str]:
        """Return one page of the rollouts that touch a scope, and the token of the next.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        node = parse(query.filter, repository.ROLLOUTS) if query.filter else None
        sortable = {"created": RolloutRow.created, "id": RolloutRow.id}
        return paginate(
            session,
            repository.rollouts(node, scope),
            query,
            sortable,
            RolloutRow.id,
        )

    def page_of_deployments(
        self, session: Session, query: PageQuery, rollout: str = "", scope: Scope = None
    ) -> tuple[Sequence[DeploymentRow], str]:
        """Return one page of a scope's device deployments; of one rollout's waves if it is named.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        node = parse(query.filter, repository.DEPLOYMENTS) if query.filter else None
        statement = (
            repository.of_rollout(node, rollout, scope)
            if rollout
            else repository.deployments(node, scope)
        )
        sortable = {
            "created": DeploymentRow.created,
            "updated": DeploymentRow.updated,
            "device": DeploymentRow.device,
            "id": DeploymentRow.id,
        }
        return paginate(
            session,
            statement,
            query,
            sortable,
            DeploymentRow.id,
        )

    def unreachable(self, session: Session, row: RolloutRow) -> Mapping[int, Sequence[str]]:
        """Return the devices of each wave that never accepted and were not heard lately."""
        return {wave.index: silent(wave) for wave in self._driver.view(session, row).waves}

    def wave_names(
        self, session: Session, rows: Iterable[DeploymentRow]
    ) -> Mapping[tuple[str, int], str]:
        """Return wave names by rollout and position, for these rows."""
        rollouts = {row.rollout for row in rows if row.wave >= 0}
        return {
            (rollout, wave.position): wave.name
            for rollout in rollouts
            for wave in repository.waves(session, rollout)
        }

    def _change(
        self,
        session: Session,
        row: RolloutRow,
        event: RolloutEvent,
        reason: str,
        actor: str,
        pause_code: str = "",
    ) -> None:
        self._driver.change(session, row, event, reason, actor, pause_code)
        after_commit(session, lambda: self._wake(row.id))

    def _retire(self, session: Session, rollout: str, newer: RolloutRow, actor: str) -> None:
        """End an older rollout that has lost all its devices."""
        left = [
            member
            for member in repository.members(session, rollout)
            if _S(member.state) in WITHDRAWABLE
        ]
        row = self.get(session, rollout)
        if not left and row.state in repository.ACTIVE:
            reason = f"{newer.model} {newer.version} is newer (rollout {newer.id})."
            self._change(session, row, RolloutEvent.SUPERSEDE, reason, actor)
