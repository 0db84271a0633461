"""The pure core of rollouts: cases by name, and invariants under any course of events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefleet_cloud.rollouts.decide import (
    WITHDRAWABLE,
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
    failures,
    silent,
)
from edgefleet_cloud.rollouts.gate import Gate
from edgefleet_shared.states import (
    DONE,
    DONE_NEUTRAL,
    DeploymentState,
    RolloutState,
    WaveState,
    reachable,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
S = DeploymentState


def wave(
    *states: str,
    index: int = 0,
    state: WaveState = WaveState.RELEASING,
    gate: Gate | None = None,
    **more,
) -> WaveView:
    """Return a wave whose devices are in these states; `!` marks an unreachable one."""
    devices = tuple(
        DeviceView(f"w{index}-d{n}", S(text.strip("!")), reachable="!" not in text)
        for n, text in enumerate(states)
    )
    more.setdefault("released", None if state is WaveState.WAITING else NOW)
    return WaveView(index, f"wave-{index}", state, gate or Gate(), devices, **more)


def running(*waves: WaveView, state: RolloutState = RolloutState.RUNNING) -> RolloutView:
    """Return a rollout of these waves."""
    return RolloutView(state, waves)


def after(seconds: float) -> datetime:
    """Return a time after the waves' release."""
    return NOW + timedelta(seconds=seconds)


def test_the_first_wave_is_released_and_offered():
    """A running rollout begins with its first wave, and only that."""
    first = wave("assigned", "assigned", state=WaveState.WAITING)
    second = wave("assigned", index=1, state=WaveState.WAITING)
    assert decide(running(first, second), NOW) == [ReleaseWave(0), Offer(("w0-d0", "w0-d1"))]


def test_a_wave_passes_when_all_are_well():
    """Every outcome is in and good, there is no bake time: on to the next."""
    actions = decide(running(wave("succeeded", "already_current")), NOW)
    assert actions == [PassWave(0, "2 well, 0 failed, 0 unreachable")]


def test_a_good_wave_bakes_first():
    """With bake_s a good wave is watched, then passes."""
    gate = Gate(bake_s=60)
    assert decide(running(wave("succeeded", gate=gate)), NOW) == [BakeWave(0)]
    baking = wave("succeeded", gate=gate, state=WaveState.BAKING, baking=NOW)
    assert decide(running(baking), after(59)) == []
    assert isinstance(decide(running(baking), after(60))[0], PassWave)


def test_the_first_failure_stops_at_once():
    """With no failure allowed one is enough, though others are still under way."""
    actions = decide(running(wave("rolled_back", "downloading", "assigned")), NOW)
    assert [type(action) for action in actions] == [FailWave, Stop]


def test_a_failure_pauses_where_the_gate_says_so():
    """on_fail = pause keeps the rollout for a person to decide."""
    actions = decide(running(wave("failed", "probation", gate=Gate(on_fail="pause"))), NOW)
    assert actions[1] == Pause("gate_failed", actions[0].reason)


def test_a_late_failure_in_a_passed_wave_counts():
    """A straggler of wave 0 that fails while wave 1 runs stops the rollout."""
    first = wave("succeeded", "failed", state=WaveState.PASSED)
    second = wave("offered", index=1)
    assert isinstance(decide(running(first, second), NOW)[-1], Stop)


def test_failures_within_the_budget_let_the_wave_pass():
    """max_failures without min_success_pct is the whole rule."""
    gate = Gate(max_failures=1)
    assert isinstance(decide(running(wave("failed", "succeeded", gate=gate)), NOW)[0], PassWave)


def test_too_small_a_share_fails_as_soon_as_it_is_certain():
    """Two of four failed: 75 % can no longer succeed, whatever the others do."""
    gate = Gate(max_failures=10, min_success_pct=75, min_devices=2)
    actions = decide(running(wave("failed", "failed", "downloading", "probation", gate=gate)), NOW)
    assert isinstance(actions[0], FailWave)


def test_a_share_is_not_judged_on_too_small_a_sample():
    """One failure of five is no verdict while two outcomes are asked for."""
    gate = Gate(max_failures=10, min_success_pct=90, min_devices=2)
    states = ["failed", *["offered"] * 4]
    assert decide(running(wave(*states, gate=gate)), NOW) == []


def test_unreachable_devices_are_left_out_and_shown():
    """Devices that never accepted and are silent neither fail a wave nor hold it up."""
    seen = wave("succeeded", "offered!", "offered!")
    assert isinstance(decide(running(seen), NOW)[0], PassWave)
    assert silent(seen) == ("w0-d1", "w0-d2")


def test_a_device_that_fell_silent_after_accepting_is_waited_for():
    """The update may be what silenced it, so only the deadline ends the wait."""
    seen = wave("succeeded", "swapping!", gate=Gate(inconclusive="hold"))
    assert decide(running(seen), NOW) == []
    assert isinstance(decide(running(seen), after(3600))[0], Pause)


def test_at_the_deadline_devices_that_answer_but_are_not_done_time_out():
    """Alive and still on the old version after the deadline is a failure, not bad luck."""
    seen = wave("downloading", "offered", "offered!", "probation")
    assert decide(running(seen), after(3599)) == []
    assert decide(running(seen), after(3600)) == [TimeOut(("w0-d0", "w0-d1"))]


def test_a_wave_of_silent_devices_only_is_never_passed_by_itself():
    """Without min_devices well, lack of evidence holds, whatever the policy."""
    seen = wave("offered!", "offered!")
    assert decide(running(seen), NOW) == []
    held = decide(running(seen), after(3600))
    assert [type(action) for action in held] == [Pause]
    assert held[0].code == "gate_inconclusive"


def test_whoever_resumes_waives_the_doubt():
    """After a resume the wave passes on what there is."""
    seen = wave("offered!", waived=True)
    assert isinstance(decide(running(seen), after(3600))[0], PassWave)


@pytest.mark.parametrize(("policy", "kind"), [("pass", PassWave), ("hold", Pause)])
def test_an_inconclusive_probation_is_good_or_holds_as_the_gate_says(policy, kind):
    """Too few requests during probation: the policy decides what that is worth."""
    quiet = DeviceView("w0-d0", S.SUCCEEDED, verdict="inconclusive")
    seen = replace(wave("succeeded", gate=Gate(inconclusive=policy)), devices=(quiet,))
    assert isinstance(decide(running(seen), NOW)[0], kind)


def test_acknowledged_failures_do_not_trip_again():
    """After a resume only further failures count."""
    gate = Gate(on_fail="pause", min_devices=1)
    seen = wave("failed", "succeeded", "downloading", gate=gate, acknowledged=1)
    assert decide(running(seen), NOW) == []
    worse = wave("failed", "succeeded", "failed", gate=gate, acknowledged=1)
    assert isinstance(decide(running(worse), NOW)[0], FailWave)


def test_a_wave_without_anybody_left_is_skipped():
    """Superseded and canceled devices are nobody."""
    seen = wave("superseded", "canceled", state=WaveState.WAITING)
    assert decide(running(seen), NOW) == [SkipWave(0)]


def test_it_completes_after_the_last_wave():
    """Passed and skipped waves are done with."""
    first = wave("succeeded", state=WaveState.PASSED)
    second = wave("canceled", index=1, state=WaveState.SKIPPED)
    assert decide(running(first, second), NOW) == [Complete()]


def test_a_stopped_rollout_withdraws_what_has_not_swapped():
    """Devices past their swap finish; all others are taken back."""
    first = wave("accepted", "swapping", "probation", "succeeded", "staged")
    second = wave("assigned", index=1, state=WaveState.WAITING)
    actions = decide(running(first, second, state=RolloutState.STOPPED), NOW)
    assert actions == [Withdraw(("w0-d0", "w0-d4", "w1-d0")), SkipWave(1)]


def test_a_paused_rollout_does_nothing():
    """Neither offers nor verdicts while it is paused."""
    seen = wave("assigned", "failed")
    assert decide(running(seen, state=RolloutState.PAUSED), after(99999)) == []


def test_a_rollback_ends_when_every_device_has_gone_back():
    """Silent devices are not waited for: they go back when they are heard again."""
    seen = running(wave("succeeded"), state=RolloutState.ROLLING_BACK)
    assert decide(replace(seen, reverting=(DeviceView("a", S.PREPARING),)), NOW) == []
    gone = (DeviceView("a", S.SUCCEEDED), DeviceView("b", S.OFFERED, reachable=False))
    assert decide(replace(seen, reverting=gone), NOW) == [FinishRollback()]


def test_a_device_that_joins_late_gets_only_what_its_wave_has_proved():
    """Assigned into a passed wave it is offered at once; into a waiting one it waits."""
    first = wave("succeeded", "assigned", state=WaveState.PASSED)
    second = wave("offered", "probation", index=1)
    third = wave("assigned", index=2, state=WaveState.WAITING)
    assert decide(running(first, second, third), NOW) == [Offer(("w0-d1",))]


class World:
    """A rollout, its devices and the time, driven by chance; checks the invariants at each step."""

    def __init__(self, draw, sizes: list[int], gates: list[Gate]) -> None:
        self.draw, self.now = draw, NOW
        waves = [
            wave(*["assigned"] * size, index=n, gate=gate, state=WaveState.WAITING)
            for n, (size, gate) in enumerate(zip(sizes, gates, strict=True))
        ]
        self.view = running(*waves)
        self.members = [frozenset(d.device for d in each.devices) for each in waves]
        self.pause_code = ""

    def settle(self) -> None:
        """Do what is due until nothing is."""
        for _ in range(1000):
            actions = decide(self.view, self.now)
            if not actions:
                return
            for action in actions:
                self.perform(action)
        raise AssertionError("decide never comes to rest")

    def perform(self, action) -> None:
        match action:
            case Offer(devices):
                assert self.view.state is RolloutState.RUNNING, "offered by an ended rollout"
                for device in devices:
                    self._check_offer(device)
                    self._set(device, S.OFFERED)
            case Withdraw(devices) | TimeOut(devices):
                end = S.CANCELED if isinstance(action, Withdraw) else S.TIMED_OUT
                for device in devices:
                    assert self._device(device).state in WITHDRAWABLE
                    self._set(device, end)
            case Pause(code, _):
                self.pause_code = code
                self.view = replace(self.view, state=RolloutState.PAUSED)
            case Stop(_):
                self.view = replace(self.view, state=RolloutState.STOPPED)
            case Complete():
                self.view = replace(self.view, state=RolloutState.COMPLETED)
            case _:
                self._perform_on_wave(action)

    def _perform_on_wave(self, action) -> None:
        match action:
            case ReleaseWave(index):
                self._wave(index, state=WaveState.RELEASING, released=self.now)
            case BakeWave(index):
                self._wave(index, state=WaveState.BAKING, baking=self.now)
            case PassWave(index, _):
                self._check_pass(self.view.waves[index])
                self._wave(index, state=WaveState.PASSED)
            case FailWave(index, _):
                self._wave(index, state=WaveState.FAILED)
            case SkipWave(index):
                self._wave(index, state=WaveState.SKIPPED)

    def resume(self) -> None:
        for each in self.view.waves:
            again = each.state in {WaveState.FAILED, WaveState.RELEASING}
            self._wave(
                each.index,
                acknowledged=failures(each),
                state=WaveState.RELEASING if again else each.state,
                released=self.now if again else each.released,
                waived=each.waived or (again and self.pause_code == "gate_inconclusive"),
            )
        self.view = replace(self.view, state=RolloutState.RUNNING)

    def check(self) -> None:
        """Check what must hold between any two events."""
        assert [frozenset(d.device for d in w.devices) for w in self.view.waves] == self.members
        for before, later in zip(self.view.waves, self.view.waves[1:], strict=False):
            if before.state not in {WaveState.PASSED, WaveState.SKIPPED}:
                assert all(d.state in {S.ASSIGNED, *DONE_NEUTRAL} for d in later.devices), (
                    "a wave was touched before the one ahead of it passed"
                )
        if self.view.state is RolloutState.STOPPED:
            assert not any(d.state in WITHDRAWABLE for w in self.view.waves for d in w.devices)

    def _check_offer(self, device: str) -> None:
        index = next(n for n, names in enumerate(self.members) if device in names)
        for each in self.view.waves[:index]:
            assert each.state in {WaveState.PASSED, WaveState.SKIPPED}

    def _check_pass(self, each: WaveView) -> None:
        assert failures(each) <= max(each.gate.max_failures, each.acknowledged)
        well = sum(d.state in {S.SUCCEEDED, S.ALREADY_CURRENT} for d in each.devices)
        counted = sum(d.state not in DONE_NEUTRAL for d in each.devices)
        assert each.waived or well >= min(each.gate.min_devices, counted) or failures(each)

    def _device(self, name: str) -> DeviceView:
        return next(d for w in self.view.waves for d in w.devices if d.device == name)

    def _set(self, name: str, state: DeploymentState) -> None:
        self.change(name, state=state)

    def change(self, name: str, **fields) -> None:
        waves = tuple(
            replace(
                w,
                devices=tuple(replace(d, **fields) if d.device == name else d for d in w.devices),
            )
            for w in self.view.waves
        )
        self.view = replace(self.view, waves=waves)

    def _wave(self, index: int, **fields) -> None:
        waves = tuple(replace(w, **fields) if w.index == index else w for w in self.view.waves)
        self.view = replace(self.view, waves=waves)


GATES = st.builds(
    Gate,
    min_devices=st.integers(1, 4),
    max_failures=st.integers(0, 2),
    bake_s=st.sampled_from([0, 30]),
    deadline_s=st.sampled_from([60, 600]),
    inconclusive=st.sampled_from(["pass", "hold"]),
    on_fail=st.sampled_from(["stop", "pause"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_course_of_events_breaks_the_order_of_waves_or_offers_after_the_end(data):
    """No device is offered before the waves ahead passed; an ended rollout offers nothing more."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    world = World(data.draw, sizes, [data.draw(GATES) for _ in sizes])
    names = sorted(name for group in world.members for name in group)
    world.settle()
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(
            st.sampled_from(["report"] * 6 + ["time", "silence", "pause", "resume", "stop"])
        )
        name = data.draw(st.sampled_from(names))
        device = world._device(name)
        if what == "report" and device.state not in {*DONE, S.ASSIGNED}:
            ahead = sorted(reachable(device.state))
            verdict = data.draw(st.sampled_from(["", "pass", "inconclusive"]))
            world.change(name, state=data.draw(st.sampled_from(ahead)), verdict=verdict)
        elif what == "time":
            world.now += timedelta(seconds=data.draw(st.sampled_from([1, 31, 61, 700])))
        elif what == "silence":
            world.change(name, reachable=not device.reachable)
        elif what == "pause" and world.view.state is RolloutState.RUNNING:
            world.pause_code = "manual"
            world.view = replace(world.view, state=RolloutState.PAUSED)
        elif what == "resume" and world.view.state is RolloutState.PAUSED:
            world.resume()
        elif what == "stop" and world.view.state in {RolloutState.RUNNING, RolloutState.PAUSED}:
            world.view = replace(world.view, state=RolloutState.STOPPED)
        world.settle()
        world.check()
