"""What a rollout does next. Pure: a snapshot and a time go in, actions come out.

Rules: a wave is released only after the one before it passed; failures are counted against devices
that accepted, never against silent ones; crossing the error budget acts before anything else; an
ended rollout offers nothing and withdraws what was not swapped yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from edgefleet_cloud.rollouts.gate import Gate
from edgefleet_shared.states import (
    DONE,
    DONE_NEUTRAL,
    DONE_NOT_OK,
    DONE_OK,
    TOUCHED,
    DeploymentState,
    RolloutState,
    WaveState,
)

WITHDRAWABLE = frozenset({
    DeploymentState.ASSIGNED, DeploymentState.OFFERED, DeploymentState.ACCEPTED,
    DeploymentState.DOWNLOADING, DeploymentState.VERIFYING, DeploymentState.PREPARING,
    DeploymentState.STAGED,
})  # fmt: skip
"""States in which the old version certainly still serves."""


@dataclass(frozen=True)
class DeviceView:
    """One device of a wave. `reachable`: it was heard lately; `verdict`: probation's finding."""

    device: str
    state: DeploymentState
    verdict: str = ""
    reachable: bool = True


@dataclass(frozen=True)
class WaveView:
    """One wave; whoever resumed has seen `acknowledged` failures and, if `waived`, the doubt."""

    index: int
    name: str
    state: WaveState
    gate: Gate
    devices: tuple[DeviceView, ...]
    released: datetime | None = None
    baking: datetime | None = None
    acknowledged: int = 0
    waived: bool = False


@dataclass(frozen=True)
class RolloutView:
    """A rollout; `reverting` are the deployments that take its devices back."""

    state: RolloutState
    waves: tuple[WaveView, ...]
    reverting: tuple[DeviceView, ...] = ()


@dataclass(frozen=True)
class ReleaseWave:
    """Start a wave."""

    index: int


@dataclass(frozen=True)
class Offer:
    """Give devices of a released wave the new version."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class BakeWave:
    """Every outcome is in and good: watch it for a while."""

    index: int


@dataclass(frozen=True)
class PassWave:
    """The wave's gate is open."""

    index: int
    reason: str


@dataclass(frozen=True)
class FailWave:
    """The wave's gate is shut."""

    index: int
    reason: str


@dataclass(frozen=True)
class SkipWave:
    """The wave has nobody left in it, or the rollout ended before its turn."""

    index: int


@dataclass(frozen=True)
class TimeOut:
    """Devices that answer but missed the wave's deadline, and still run the old version."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Withdraw:
    """Take the offer back from devices that have not swapped."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Pause:
    """Offer nothing until somebody resumes; `code`: gate_failed or gate_inconclusive."""

    code: str
    reason: str


@dataclass(frozen=True)
class Stop:
    """End the rollout."""

    reason: str


@dataclass(frozen=True)
class Complete:
    """All waves passed."""


@dataclass(frozen=True)
class FinishRollback:
    """Every device that had to go back has an outcome."""


Action = (
    ReleaseWave | Offer | BakeWave | PassWave | FailWave | SkipWave | TimeOut | Withdraw | Pause
    | Stop | Complete | FinishRollback
)  # fmt: skip


def decide(rollout: RolloutView, now: datetime) -> list[Action]:
    """Return what to do now, in order; nothing if the rollout has to wait.

    Call again after the actions are done, until the answer is empty.
    """
    if rollout.state is RolloutState.RUNNING:
        return _run(rollout, now)
    if rollout.state in {RolloutState.STOPPED, RolloutState.SUPERSEDED}:
        return _wind_down(rollout)
    if rollout.state is RolloutState.ROLLING_BACK:
        actions = _wind_down(rollout)
        if all(device.state in DONE or not device.reachable for device in rollout.reverting):
            actions.append(FinishRollback())
        return actions
    return []


def failures(wave: WaveView) -> int:
    """Return how many devices of the wave ended badly."""
    return sum(device.state in DONE_NOT_OK for device in wave.devices)


def silent(wave: WaveView) -> tuple[str, ...]:
    """Return the devices that never accepted and were not heard lately: shown, not counted."""
    return tuple(
        device.device
        for device in wave.devices
        if device.state not in TOUCHED | DONE_NEUTRAL and not device.reachable
    )


def _run(rollout: RolloutView, now: datetime) -> list[Action]:
    for wave in rollout.waves:
        reason = _broken(wave) if wave.released else ""
        if reason:
            return _fail(wave, reason)
    for wave in rollout.waves:
        if wave.state is WaveState.WAITING:
            return _release(wave)
        if wave.state is WaveState.RELEASING:
            return _offer(wave) or _judge(wave, now)
        if wave.state is WaveState.BAKING:
            return _bake(wave, now)
        if wave.state is WaveState.FAILED:
            return []
        # Passed. A device that joined late is given what its wave has proved.
        late = _offer(wave)
        if late and wave.state is WaveState.PASSED:
            return late
    return [Complete()]


def _release(wave: WaveView) -> list[Action]:
    if all(device.state in DONE_NEUTRAL for device in wave.devices):
        return [SkipWave(wave.index)]
    return [ReleaseWave(wave.index), *_offer(wave)]


def _offer(wave: WaveView) -> list[Action]:
    ready = tuple(d.device for d in wave.devices if d.state is DeploymentState.ASSIGNED)
    return [Offer(ready)] if ready else []


def _fail(wave: WaveView, reason: str) -> list[Action]:
    if wave.gate.on_fail == "pause":
        return [FailWave(wave.index, reason), Pause("gate_failed", reason)]
    return [FailWave(wave.index, reason), Stop(reason)]


def _broken(wave: WaveView) -> str:
    """Say how the wave's error budget is crossed, or ''. Only failures not yet seen count."""
    bad = failures(wave)
    if bad <= wave.acknowledged:
        return ""
    counted = sum(device.state not in DONE_NEUTRAL for device in wave.devices)
    if bad > wave.gate.max_failures:
        return (
            f"{devices(bad)} of wave {wave.name!r} failed; {wave.gate.max_failures or 'none'} may."
        )
    touched = sum(device.state in TOUCHED for device in wave.devices)
    enough = touched >= min(wave.gate.min_devices, counted)
    if enough and (counted - bad) * 100 < wave.gate.min_success_pct * counted:
        return (
            f"{devices(bad)} of {counted} in wave {wave.name!r} failed, so "
            f"{wave.gate.min_success_pct} % can no longer succeed."
        )
    return ""


def _judge(wave: WaveView, now: datetime) -> list[Action]:
    """Look at a released wave: wait, time out, bake, pass or hold."""
    counted = [device for device in wave.devices if device.state not in DONE_NEUTRAL]
    if not counted:
        return [SkipWave(wave.index)]
    assert wave.released is not None
    late = now >= wave.released + timedelta(seconds=wave.gate.deadline_s)
    # A device that accepted and then fell silent is waited for: the update may be why.
    pending = [d for d in counted if d.state not in DONE and (d.state in TOUCHED or d.reachable)]
    if pending and not late:
        return []
    stuck = tuple(d.device for d in pending if d.reachable and d.state in WITHDRAWABLE)
    if stuck:
        return [TimeOut(stuck)]
    outcomes = sum(device.state in DONE for device in counted)
    sample = min(wave.gate.min_devices, len(counted))
    if outcomes < sample and not late:
        return []
    return _conclude(wave, counted, sample, len(pending))


def _conclude(
    wave: WaveView, counted: list[DeviceView], sample: int, undecided: int
) -> list[Action]:
    good = [device for device in counted if device.state in DONE_OK]
    bad = failures(wave)
    if bad > wave.acknowledged and len(good) * 100 < wave.gate.min_success_pct * (len(good) + bad):
        return _fail(wave, f"{len(good)} of {len(good) + bad} in wave {wave.name!r} are well.")
    unproven = sum(device.verdict == "inconclusive" for device in good)
    doubt = ""
    if len(good) < sample:
        doubt = f"{len(good)} of the {sample} needed in wave {wave.name!r} are well"
    elif undecided:
        doubt = f"{devices(undecided)} of wave {wave.name!r} accepted and gave no outcome"
    elif unproven:
        doubt = f"{devices(unproven)} of wave {wave.name!r} saw too few requests to tell"
    lenient = wave.gate.inconclusive == "pass" and len(good) >= sample
    if doubt and not lenient and not wave.waived:
        return [Pause("gate_inconclusive", f"{doubt}.")]
    if wave.gate.bake_s:
        return [BakeWave(wave.index)]
    return [PassWave(wave.index, _summary(wave, len(good), bad, doubt))]


def _bake(wave: WaveView, now: datetime) -> list[Action]:
    assert wave.baking is not None
    if now < wave.baking + timedelta(seconds=wave.gate.bake_s):
        return []
    good = sum(device.state in DONE_OK for device in wave.devices)
    return [PassWave(wave.index, _summary(wave, good, failures(wave), ""))]


def _summary(wave: WaveView, good: int, bad: int, doubt: str) -> str:
    parts = [f"{good} well", f"{bad} failed", f"{len(silent(wave))} unreachable"]
    return ", ".join([*parts, doubt] if doubt else parts)


def _wind_down(rollout: RolloutView) -> list[Action]:
    actions: list[Action] = []
    back = tuple(
        device.device
        for wave in rollout.waves
        for device in wave.devices
        if device.state in WITHDRAWABLE
    )
    if back:
        actions.append(Withdraw(back))
    actions += [SkipWave(wave.index) for wave in rollout.waves if wave.state is WaveState.WAITING]
    return actions


def devices(count: int) -> str:
    """Return a number of devices in words."""
    return "1 device" if count == 1 else f"{count} devices"
