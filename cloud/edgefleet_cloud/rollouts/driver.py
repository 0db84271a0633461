"""Performs what `decide` says: the only place where a rollout or a wave changes its state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import Session, col

from edgefleet_cloud.database import reason_of
from edgefleet_cloud.devices import repository as devices_repository
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.decide import (
    Action,
    BakeWave,
    Complete,
    DeviceView,
    FailWave,
    FinishRollback,
    Offer,
    PassWave,
    Pause,
    ReleaseWave,
    RolloutView,
    SkipWave,
    Stop,
    TimeOut,
    WaveView,
    Withdraw,
    decide,
    devices,
)
from edgefleet_cloud.rollouts.gate import Gate
from edgefleet_cloud.rollouts.slots import Slots
from edgefleet_cloud.rollouts.tables import ROLLBACK, DeploymentRow, RolloutRow, WaveRow
from edgefleet_shared.states import (
    ROLLOUT,
    DeploymentEvent,
    DeploymentState,
    RolloutEvent,
    RolloutState,
    WaveState,
    advance,
)
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time, parse_time

BATCH = 200
"""Devices that change in one transaction; the rest follow in the next, so that others may write."""
ROOM = 500
"""Documents that may wait to be sent: a paused rollout sends no more, and none waits in memory."""
SILENT_AFTER = timedelta(seconds=180)
"""Three keep-alives without a word, and no connection: a device counts as unreachable."""

_ENDED = frozenset({
    RolloutState.STOPPED, RolloutState.COMPLETED, RolloutState.ROLLED_BACK, RolloutState.SUPERSEDED,
})  # fmt: skip


class Driver:
    """Moves rollouts; the caller owns the session and its commit.

    Args:
        slots: Changes what devices should run.
        events: Told of every transition, with old and new state, counts and the rule that fired.
        clock: Dates transitions and measures deadlines.
        waiting: Returns how many documents wait to be sent, by the way that devices are reached on.
    """

    def __init__(
        self,
        slots: Slots,
        events: EventSink,
        clock: Clock,
        waiting: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._slots = slots
        self._waiting = waiting
        self._events = events
        self._clock = clock

    def due(self, session: Session, row: RolloutRow) -> bool:
        """Return whether there is something to do for a rollout now."""
        return bool(self._due(session, row))

    def _due(self, session: Session, row: RolloutRow) -> Sequence[Action]:
        """Return what is to be done now; devices are told no faster than their way takes it."""
        actions = decide(self.view(session, row), self._clock())
        full = [way for way, waiting in self._waiting().items() if waiting >= ROOM]
        if not full or not any(isinstance(each, Offer) for each in actions):
            return actions
        behind = devices_repository.on_ways(session, full)
        narrowed = [_without(each, behind) if isinstance(each, Offer) else each for each in actions]
        return [each for each in narrowed if not isinstance(each, Offer) or each.devices]

    def step(self, session: Session, row: RolloutRow) -> bool:
        """Do what is due, for at most `BATCH` devices; return whether more is due at once."""
        budget = BATCH
        while budget > 0:
            actions = self._due(session, row)
            if not actions:
                return False
            waves = {wave.position: wave for wave in repository.waves(session, row.id)}
            for action in actions:
                budget -= self._perform(session, row, waves, action)
            session.flush()
        return True

    def change(
        self,
        session: Session,
        row: RolloutRow,
        event: RolloutEvent,
        reason: str,
        actor: str = "",
        pause_code: str = "",
    ) -> None:
        """Advance a rollout by an event.

        Raises:
            InvalidInputError: code `transition`: this cannot happen in its state.
        """
        old, reason = row.state, reason or reason_of(session)
        state = advance(ROLLOUT, RolloutState(old), event)
        now = format_time(self._clock())
        before = _described(row)
        row.state, row.pause_code = state.value, pause_code
        row.reason = reason or row.reason
        row.revision += 1
        if event is RolloutEvent.START:
            row.started = now
        row.finished = now if state in _ENDED else None
        session.add(row)
        session.flush()
        words = state.value.replace("_", " ")
        said = f"Rollout of {row.model} {row.version} is {words}"
        self._events.record(
            session,
            type=f"rollout.{state.value}",
            step=Step.TARGET,
            subject=f"rollouts/{row.id}",
            message=f"{said}: {reason}" if reason else f"{said}.",
            actor=actor,
            data={
                "old": old,
                "new": state.value,
                "reason": reason,
                "pause_code": pause_code,
                "counts": {
                    str(wave): dict(states)
                    for wave, states in repository.counts(session, row.id).items()
                },
            },
            reason=reason,
            before=before,
            after=_described(row),
        )

    def tell_created(self, session: Session, row: RolloutRow, waves: Mapping[str, int]) -> None:
        """Tell of a new rollout; `waves` has the number of devices by the wave's name, in order."""
        self._events.record(
            session,
            type="rollout.created",
            step=Step.TARGET,
            subject=f"rollouts/{row.id}",
            message=f"Rollout of {row.model} {row.version} to {devices(sum(waves.values()))}.",
            actor=row.actor,
            reason=row.reason,
            after={
                **_described(row),
                **row.model_dump(include={"manifest", "gate", "policy", "selection"}),
                "waves": [{"name": name, "devices": count} for name, count in waves.items()],
            },
        )

    def view(self, session: Session, row: RolloutRow) -> RolloutView:
        """Return a rollout as `decide` sees it."""
        forward = repository.outlines(session, row.id)
        back = repository.outlines(session, row.id, ROLLBACK)
        reachable = self._reachable(session, row.id)
        by_wave: dict[int, list[DeviceView]] = {}
        for each in forward:
            by_wave.setdefault(each.wave, []).append(_device(each, reachable))
        waves = tuple(
            WaveView(
                index=wave.position,
                name=wave.name,
                state=WaveState(wave.state),
                gate=Gate(**wave.gate),
                devices=tuple(by_wave.get(wave.position, ())),
                released=parse_time(wave.released) if wave.released else None,
                baking=parse_time(wave.baking) if wave.baking else None,
                acknowledged=wave.acknowledged,
                waived=wave.waived,
            )
            for wave in repository.waves(session, row.id)
        )
        return RolloutView(
            RolloutState(row.state), waves, tuple(_device(each, reachable) for each in back)
        )

    def _reachable(self, session: Session, rollout: str) -> frozenset[str]:
        members = select(DeploymentRow.device).where(  # type: ignore[call-overload]  # SQLModel types a column as its value
            col(DeploymentRow.rollout) == rollout
        )
        heard = format_time(self._clock() - SILENT_AFTER)
        query = select(DeviceRow.id).where(  # type: ignore[call-overload]  # as above
            col(DeviceRow.id).in_(members),
            col(DeviceRow.online).is_(True) | (col(DeviceRow.last_seen) >= heard),
        )
        return frozenset(session.scalars(query))

    def _perform(
        self, session: Session, row: RolloutRow, waves: Mapping[int, WaveRow], action: Action
    ) -> int:
        """Perform one action; return how many devices it changed."""
        now = self._clock()
        match action:
            case Offer(devices):
                return self._each(session, row, devices, None, "")
            case Withdraw(devices):
                reason = f"rollout {row.state}"
                return self._each(session, row, devices, DeploymentEvent.CANCEL, reason)
            case TimeOut(devices):
                reason = "wave deadline"
                return self._each(session, row, devices, DeploymentEvent.TIME_OUT, reason)
            case Pause(code, reason):
                self.change(session, row, RolloutEvent.PAUSE, reason, pause_code=code)
            case Stop(reason):
                self.change(session, row, RolloutEvent.STOP, reason)
            case Complete():
                self.change(session, row, RolloutEvent.COMPLETE, "")
            case FinishRollback():
                self.change(session, row, RolloutEvent.ROLLED_BACK, "")
            case _:
                self._wave(session, row, waves[action.index], action, now)
        return 0

    def _each(
        self,
        session: Session,
        row: RolloutRow,
        devices: Sequence[str],
        event: DeploymentEvent | None,
        reason: str,
    ) -> int:
        """Offer to devices (`event` None) or withdraw from them; the first `BATCH` of them."""
        wanted = devices[:BATCH]
        for member in repository.members_among(session, row.id, wanted):
            if event is None:
                self._slots.offer(session, member)
            else:
                self._slots.withdraw(session, member, event, reason)
        return len(wanted)

    def _wave(
        self,
        session: Session,
        row: RolloutRow,
        wave: WaveRow,
        action: ReleaseWave | BakeWave | PassWave | FailWave | SkipWave,
        now: datetime,
    ) -> None:
        before, reason = describe_wave(wave), ""
        match action:
            case ReleaseWave():
                wave.state, wave.released = WaveState.RELEASING.value, format_time(now)
            case BakeWave():
                wave.state, wave.baking = WaveState.BAKING.value, format_time(now)
            case PassWave(_, reason):
                wave.state = WaveState.PASSED.value
            case FailWave(_, reason):
                wave.state = WaveState.FAILED.value
            case SkipWave():
                wave.state = WaveState.SKIPPED.value
        wave.reason = reason
        self.tell_wave(session, row, wave, before)

    def tell_wave(
        self,
        session: Session,
        row: RolloutRow,
        wave: WaveRow,
        before: Mapping[str, object],
        actor: str = "",
    ) -> None:
        """Keep a wave's new state, and tell of it."""
        reason = wave.reason
        session.add(wave)
        word = "released" if wave.state == WaveState.RELEASING.value else wave.state
        said = f"Wave {wave.name!r} of {row.model} {row.version} {word}"
        self._events.record(
            session,
            type=f"rollout.wave.{word}",
            step=Step.TARGET,
            subject=f"rollouts/{row.id}",
            message=f"{said}: {reason}" if reason else f"{said}.",
            actor=actor,
            reason=reason,
            before=before,
            after=describe_wave(wave),
            data={
                "wave": wave.name,
                "index": wave.position,
                "old": before["state"],
                "new": wave.state,
                "reason": reason,
                "gate": wave.gate,
                "counts": dict(repository.counts(session, row.id).get(wave.position, {})),
            },
        )


def _without(offer: Offer, behind: Collection[str]) -> Offer:
    return Offer(tuple(device for device in offer.devices if device not in behind))


def _described(row: RolloutRow) -> dict[str, object]:
    return {"state": row.state, "reason": row.reason, "pause_code": row.pause_code}


def describe_wave(wave: WaveRow) -> dict[str, object]:
    """Return what events say of a wave, before and after a change of it."""
    return wave.model_dump(include={"state", "reason", "acknowledged", "waived"})


def _device(row: repository.Outline, reachable: frozenset[str]) -> DeviceView:
    return DeviceView(row.device, DeploymentState(row.state), row.verdict, row.device in reachable)
