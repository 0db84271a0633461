"""Rollouts from the wish to the signed assignment, with devices that answer as told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from sqlmodel import select

from edgefleet_cloud.database import Database
from edgefleet_cloud.rollouts.schemas import NewRollout
from edgefleet_cloud.rollouts.tables import DeploymentRow
from edgefleet_shared.errors import InvalidInputError
from tests.cloud.rollout_world import RolloutWorld

CANARY = [{"name": "canary", "devices": ["cam-1"]}, {"name": "rest", "rest": True}]


@pytest.fixture
def world(database: Database) -> Iterator[RolloutWorld]:
    """Three enrolled devices that run 1.0.0, and 2.0.0 published."""
    made = RolloutWorld(database)
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        made.shelf.publish(version)
    made.enroll("cam-1", "cam-2", "cam-3")
    made.serve("cam-1", "cam-2", "cam-3", version="1.0.0")
    yield made
    made.transport.stop()


def test_the_canary_goes_first_and_the_rest_after_it_passed(world: RolloutWorld):
    """Others are offered nothing until the canary is well; then all complete."""
    rollout = world.roll_out("2.0.0", waves=CANARY)
    assert world.states(rollout) == {"cam-1": "offered", "cam-2": "assigned", "cam-3": "assigned"}
    assert world.document("cam-1")[1].slots["digits"].version == "2.0.0"
    assert world.document("cam-2")[1].slots["digits"].version == "1.0.0"
    for state in ("accepted", "downloading", "probation"):
        world.report("cam-1", state, active="1.0.0")
        assert world.states(rollout)["cam-2"] == "assigned"
    world.report("cam-1", "succeeded", active="2.0.0", verdict="pass")
    assert world.waves(rollout) == ["passed", "releasing"]
    assert world.states(rollout)["cam-2"] == "offered"
    for device in ("cam-2", "cam-3"):
        world.report(device, "succeeded", active="2.0.0")
    assert world.rollout(rollout).state == "completed"
    assert world.rollout(rollout).finished
    assert [event.type for event in world.events("rollout.")][-6:] == [
        "rollout.running", "rollout.wave.released", "rollout.wave.passed",
        "rollout.wave.released", "rollout.wave.passed", "rollout.completed",
    ]  # fmt: skip


def test_a_canary_that_rolls_back_stops_the_rollout_and_desired_follows(world: RolloutWorld):
    """The others are never offered it, and the canary is asked for what it serves."""
    rollout = world.roll_out("3.0.0", waves=CANARY)
    before = world.document("cam-1")[1]
    world.report("cam-1", "probation", active="3.0.0", previous="1.0.0")
    world.report("cam-1", "rolled_back", active="1.0.0", reason="nonfinite", detail="NaN.")
    row = world.rollout(rollout)
    assert (row.state, world.waves(rollout)) == ("stopped", ["failed", "skipped"])
    assert "1 device of wave 'canary' failed" in row.reason
    assert world.states(rollout) == {
        "cam-1": "rolled_back", "cam-2": "canceled", "cam-3": "canceled",
    }  # fmt: skip
    _, after = world.document("cam-1")
    assert after.slots["digits"].version == "1.0.0"
    assert after.slots["digits"].deployment != before.slots["digits"].deployment
    assert after.counter > before.counter
    assert world.wanted("cam-1").kind == "restore"
    world.report("cam-1", "already_current", active="1.0.0")
    assert world.wanted("cam-1").state == "already_current"
    stopped = world.events("rollout.stopped")[-1]
    assert stopped.data["old"] == "running"
    assert stopped.data["counts"]["0"] == {"rolled_back": 1}


def test_a_withdrawn_device_is_asked_for_what_it_had(world: RolloutWorld):
    """One failure stops; a device still downloading is told to stay as it was."""
    rollout = world.roll_out("2.0.0")
    world.report("cam-2", "downloading", active="1.0.0")
    world.report("cam-3", "swapping", active="1.0.0")
    world.report("cam-1", "failed", active="1.0.0", reason="load_failed")
    assert world.states(rollout) == {
        "cam-1": "failed", "cam-2": "canceled", "cam-3": "swapping",
    }  # fmt: skip
    assert world.document("cam-2")[1].slots["digits"].version == "1.0.0"
    assert world.document("cam-3")[1].slots["digits"].version == "2.0.0"
    world.report("cam-3", "succeeded", active="2.0.0")
    assert world.states(rollout)["cam-3"] == "succeeded"


def test_a_device_that_had_nothing_is_told_to_stop(world: RolloutWorld):
    """Absence is an explicit statement: the slot's mode is stop."""
    world.enroll("cam-9")
    rollout = world.roll_out("2.0.0", devices=["cam-9"])
    world.act(rollout, "stop")
    slot = world.document("cam-9")[1].slots["digits"]
    assert (slot.mode, world.states(rollout)) == ("stop", {"cam-9": "canceled"})


def test_a_restore_that_fails_is_not_repeated(world: RolloutWorld):
    """A device that can do nothing right is not told the same again and again."""
    world.roll_out("2.0.0", devices=["cam-1"])
    world.report("cam-1", "failed", active="1.0.0")
    counter = world.document("cam-1")[1].counter
    world.report("cam-1", "failed", active="1.0.0")
    assert world.document("cam-1")[1].counter == counter


def test_rollback_takes_each_device_to_its_own_previous_version(world: RolloutWorld):
    """Devices that came from different versions go back to different versions."""
    world.serve("cam-3", version="2.0.0")
    rollout = world.roll_out("3.0.0")
    for device in ("cam-1", "cam-2", "cam-3"):
        world.report(device, "succeeded", active="3.0.0")
    world.act(rollout, "roll_back")
    assert world.rollout(rollout).state == "rolling_back"
    versions = {d: world.document(d)[1].slots["digits"].version for d in world.states(rollout)}
    assert versions == {"cam-1": "1.0.0", "cam-2": "1.0.0", "cam-3": "2.0.0"}
    for device, version in versions.items():
        world.report(device, "succeeded", active=version)
    assert world.rollout(rollout).state == "rolled_back"
    assert set(world.states(rollout).values()) == {"succeeded"}


def test_rollback_of_a_running_rollout_withdraws_the_rest(world: RolloutWorld):
    """Swapped devices go back, the others are taken off the list."""
    rollout = world.roll_out("2.0.0", waves=CANARY)
    world.report("cam-1", "succeeded", active="2.0.0")
    world.report("cam-2", "downloading", active="1.0.0")
    world.act(rollout, "roll_back")
    assert world.states(rollout) == {
        "cam-1": "succeeded", "cam-2": "canceled", "cam-3": "canceled",
    }  # fmt: skip
    assert world.document("cam-1")[1].slots["digits"].version == "1.0.0"
    assert world.document("cam-2")[1].slots["digits"].version == "1.0.0"


def test_a_newer_rollout_supersedes_an_older_one(world: RolloutWorld):
    """One active rollout a device and slot; the older one ends when it has lost all devices."""
    old = world.roll_out("2.0.0", waves=CANARY)
    new = world.roll_out("3.0.0")
    assert world.rollout(old).state == "superseded"
    assert set(world.states(old).values()) == {"superseded"}
    for device in ("cam-1", "cam-2", "cam-3"):
        assert world.document(device)[1].slots["digits"].version == "3.0.0"
    # Back from 3.0.0 leads to what was proved, not to the 2.0.0 that never served.
    world.act(new, "stop")
    assert world.document("cam-1")[1].slots["digits"].version == "1.0.0"


def test_a_newer_rollout_of_some_devices_leaves_the_others_to_the_older(world: RolloutWorld):
    """Only shared devices change hands; nothing of the loser counts against it."""
    old = world.roll_out("2.0.0")
    world.roll_out("3.0.0", devices=["cam-1"])
    assert world.rollout(old).state == "running"
    for device in ("cam-2", "cam-3"):
        world.report(device, "succeeded", active="2.0.0")
    assert world.rollout(old).state == "completed"


def test_a_device_in_probation_finishes_what_it_began(world: RolloutWorld):
    """Its old deployment ends well once it takes up the next one with that version kept."""
    old = world.roll_out("2.0.0", devices=["cam-1"])
    world.report("cam-1", "probation", active="2.0.0", previous="1.0.0")
    world.roll_out("3.0.0", devices=["cam-1"])
    assert world.states(old) == {"cam-1": "probation"}
    world.report("cam-1", "accepted", active="2.0.0", previous="1.0.0")
    assert world.states(old) == {"cam-1": "succeeded"}
    assert world.rollout(old).state == "superseded"


def test_states_never_go_backwards(world: RolloutWorld):
    """Old news, another device's news and impossible news change nothing."""
    rollout = world.roll_out("2.0.0", devices=["cam-1"])
    deployment = world.wanted("cam-1").id
    world.report("cam-1", "probation", active="2.0.0", seq=50)
    for state, more in (
        ("downloading", {"seq": 51}),
        ("succeeded", {"seq": 49}),
        ("rolled_back", {"seq": 50}),
        ("assigned", {"seq": 52}),
        ("nonsense", {"seq": 53}),
    ):
        world.report("cam-1", state, active="1.0.0", deployment=deployment, **more)
        assert world.states(rollout)["cam-1"] == "probation", state
    world.report("cam-2", "failed", deployment=deployment, seq=99)
    assert world.states(rollout)["cam-1"] == "probation"
    world.report("cam-1", "succeeded", active="2.0.0", seq=60)
    world.report("cam-1", "rolled_back", active="1.0.0", deployment=deployment, seq=61)
    assert world.states(rollout)["cam-1"] == "succeeded"


def test_work_begun_again_after_a_power_loss_may_start_over(world: RolloutWorld):
    """A higher attempt goes back to accepted, before the swap; after it, nothing does."""
    rollout = world.roll_out("2.0.0", devices=["cam-1"])
    world.report("cam-1", "staged", active="1.0.0")
    world.report("cam-1", "accepted", active="1.0.0", attempt=2)
    assert world.states(rollout) == {"cam-1": "accepted"}
    world.report("cam-1", "swapping", active="1.0.0", attempt=2)
    world.report("cam-1", "accepted", active="1.0.0", attempt=3)
    assert world.states(rollout) == {"cam-1": "swapping"}


def test_pause_and_resume(world: RolloutWorld):
    """While it is paused nothing is offered; resumed, it goes on where it was."""
    rollout = world.roll_out("2.0.0", waves=CANARY)
    world.act(rollout, "pause")
    world.report("cam-1", "succeeded", active="2.0.0")
    assert world.states(rollout)["cam-2"] == "assigned"
    world.act(rollout, "resume")
    assert world.states(rollout)["cam-2"] == "offered"
    with pytest.raises(InvalidInputError, match="'resume' cannot happen in state 'running'"):
        world.act(rollout, "resume")


def test_resuming_after_a_failure_acknowledges_it(world: RolloutWorld):
    """The failure that was seen does not stop the rollout again, the next one does."""
    rollout = world.roll_out("2.0.0", gate={"on_fail": "pause"})
    world.report("cam-1", "failed", active="1.0.0")
    assert (world.rollout(rollout).state, world.rollout(rollout).pause_code) == (
        "paused", "gate_failed",
    )  # fmt: skip
    world.act(rollout, "resume")
    world.report("cam-2", "succeeded", active="2.0.0")
    assert world.rollout(rollout).state == "running"
    world.report("cam-3", "failed", active="1.0.0")
    assert world.rollout(rollout).state == "paused"


def test_the_deadline_times_out_devices_that_answer(world: RolloutWorld):
    """A device that is heard but not done after the deadline fails, and keeps what it had."""
    rollout = world.roll_out("2.0.0", gate={"deadline_s": 600})
    world.clock.turn(seconds=599)
    world.settle()
    assert set(world.states(rollout).values()) == {"offered"}
    world.clock.turn(seconds=1)
    world.settle()
    assert set(world.states(rollout).values()) == {"timed_out"}
    assert world.rollout(rollout).state == "stopped"
    assert world.document("cam-1")[1].slots["digits"].version == "1.0.0"


def test_unreachable_devices_hold_nothing_up_and_catch_up_later(world: RolloutWorld):
    """The rollout completes without the silent one, whose assignment waits for it."""
    world.enroll("cam-8", online=False)
    rollout = world.roll_out("2.0.0")
    for device in ("cam-1", "cam-2", "cam-3"):
        world.report(device, "succeeded", active="2.0.0")
    assert world.rollout(rollout).state == "completed"
    assert "1 unreachable" in world.events("rollout.wave.passed")[-1].message
    world.report("cam-8", "succeeded", active="2.0.0")
    assert world.states(rollout)["cam-8"] == "succeeded"


def test_a_draft_waits_for_its_start(world: RolloutWorld):
    """With start = false it freezes the waves and offers nothing, nor does it supersede anybody."""
    running = world.roll_out("2.0.0")
    draft = world.roll_out("3.0.0", start=False)
    assert (world.rollout(draft).state, world.rollout(running).state) == ("draft", "running")
    world.act(draft, "start")
    assert (world.rollout(draft).state, world.rollout(running).state) == ("running", "superseded")


def test_a_dry_run_changes_nothing_and_says_what_would_be(world: RolloutWorld):
    """Waves, bytes, and what stands in the way, by name."""
    world.enroll("cam-7", hardware="rpi5")
    world.shelf.publish("4.0.0", hardware="generic-x86_64")
    running = world.roll_out("2.0.0", devices=["cam-2"])
    with world.database.write() as session:
        world.devices.create(session, "cam-6", {}, "generic-x86_64", "token/admin")
    with world.database.read() as session:
        wish = NewRollout(model="digits", version="4.0.0", waves=CANARY, dry_run=True)
        plan = world.service.plan(session, wish)
        rows = session.exec(select(DeploymentRow).where(DeploymentRow.version == "4.0.0")).all()
    assert rows == []
    assert plan.members[0] == ("cam-1",)
    assert sorted(plan.members[1]) == ["cam-2", "cam-3", "cam-7"]
    assert plan.bytes_each == {"cam-1": 1000, "cam-2": 1000, "cam-3": 1000, "cam-7": 0}
    found = {(conflict.device, conflict.kind) for conflict in plan.conflicts}
    assert found == {
        ("cam-6", "not_enrolled"), ("cam-7", "incompatible"), ("cam-2", "supersedes"),
    }  # fmt: skip
    assert plan.supersedes == [running]


@pytest.mark.parametrize(
    ("wish", "code", "says"),
    [
        ({"version": "9.9.9"}, "unknown_version", "digits 9.9.9 is not published"),
        ({"selector": "labels.site == 'mars'"}, "no_devices", "No device matches selector"),
        ({"group": "ghosts"}, "unknown_group", "ghosts"),
        ({"devices": ["ghost"]}, "unknown_device", "ghost"),
        ({"selector": "labels.site = 'x'"}, "invalid_filter", "="),
        ({"waves": [{"name": "c", "devices": ["cam-1"]}], "selector": "id like '*'"}, "waves",
         "2 devices are in no wave"),
        ({"waves": [{"name": "c", "devices": ["cam-1", "ghost"]}, CANARY[1]]}, "waves", "'ghost'"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_met_is_refused_whole(world: RolloutWorld, wish, code, says):
    """The message says what is wrong, and nothing is written."""
    with pytest.raises(InvalidInputError, match=says) as refused:
        world.roll_out(**{"version": "2.0.0", **wish})
    assert refused.value.code == code
    with world.database.read() as session:
        rows = session.exec(select(DeploymentRow).where(DeploymentRow.version != "1.0.0")).all()
    assert rows == []


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"devices": ["a"], "selector": "id like '*'"}, "one of group, selector and devices"),
        ({"waves": [{"name": "x"}]}, "exactly one of devices, count, percent and rest"),
        ({"waves": [{"name": "x", "count": 1, "rest": True}]}, "exactly one of"),
        ({"gate": {"deadline_s": 10}}, "ends before probation"),
        ({"gate": {"min_success": 10}}, "Extra inputs"),
        ({"devices": ["a", "a"]}, "named twice"),
        ({"policy": {"probation_s": -1}}, "greater than or equal to 0"),
    ],
)
def test_a_wish_without_sense_is_refused_by_its_shape(wish, says):
    """What no fleet could meet is told before any device is looked at."""
    with pytest.raises(ValidationError, match=says):
        NewRollout(model="digits", version="1.0.0", **wish)


def test_many_devices_are_offered_in_several_transactions(world: RolloutWorld):
    """450 devices need three; in the end each has its signed assignment."""
    names = [f"dev-{n}" for n in range(450)]
    world.enroll(*names)
    rollout = world.roll_out("2.0.0", devices=names)
    assert set(world.states(rollout).values()) == {"offered"}
    assert world.document("dev-449")[1].slots["digits"].version == "2.0.0"
    assert world.rollout(rollout).lease_owner == ""


def test_a_rollout_claimed_by_another_process_is_left_to_it_until_the_lease_ends(
    world: RolloutWorld,
):
    """Two controllers never drive one rollout; a dead one's claim runs out."""
    draft = world.roll_out("2.0.0", start=False)
    with world.database.write() as session:
        row = world.service.get(session, draft)
        row.lease_owner, row.lease_until = "elsewhere", "2026-01-31T12:00:30.000Z"
        session.add(row)
    world.act(draft, "start")
    assert world.states(draft)["cam-1"] == "assigned"
    world.clock.turn(seconds=31)
    world.another_controller().reconcile_all()
    assert world.states(draft)["cam-1"] == "offered"


def test_a_report_wakes_the_controller_after_its_commit(world: RolloutWorld):
    """The loop need not wait for its interval."""
    rollout = world.roll_out("2.0.0")
    world.woken.clear()
    world.report("cam-1", "accepted", active="1.0.0")
    assert world.woken == [rollout]
