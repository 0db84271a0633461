"""What a slot does when agentd or the gateway comes up: a table of journal and gateway."""

from __future__ import annotations

import pytest

from edgefleet_agent.journal import Deployment, SlotRecord, VersionRef
from edgefleet_agent.recovery import plan
from edgefleet_shared.messages import SlotAssignment
from edgefleet_shared.states import DONE, DeploymentState

S = DeploymentState


def version(name: str) -> VersionRef:
    """Return a version whose digest is its name."""
    return VersionRef("m", name, name, 1, 1, "cpu")


OLD, NEW = version("old"), version("new")
BEFORE_FLIP = {"active": OLD, "previous": None}
AFTER_FLIP = {"active": NEW, "previous": OLD}


def record(state: DeploymentState, active: VersionRef | None, previous: VersionRef | None):
    """Return a slot in the midst of bringing `new`."""
    target = SlotAssignment("run", "d", "m", "new", "new", 1, 1)
    deployment = Deployment("d", target, "http://x", state, staged=NEW)
    return SlotRecord(active, previous, deployment)


@pytest.mark.parametrize(
    ("state", "where", "running", "want"),
    [
        (S.ACCEPTED, BEFORE_FLIP, {}, (OLD, None, "restart")),
        (S.DOWNLOADING, BEFORE_FLIP, {"old": "active"}, (OLD, None, "restart")),
        (S.STAGED, BEFORE_FLIP, {"old": "active", "new": "idle"}, (OLD, None, "restart")),
        (S.SWAPPING, BEFORE_FLIP, {}, (OLD, None, "swap")),
        (S.SWAPPING, BEFORE_FLIP, {"old": "active", "new": "idle"}, (OLD, None, "swap")),
        (S.SWAPPING, BEFORE_FLIP, {"old": "standby", "new": "active"}, (NEW, OLD, "probation")),
        (S.PROBATION, AFTER_FLIP, {}, (NEW, OLD, "probation")),
        (S.PROBATION, AFTER_FLIP, {"new": "active", "old": "standby"}, (NEW, OLD, "probation")),
        (S.PROBATION, AFTER_FLIP, {"old": "active"}, (OLD, None, "roll_back")),
        (S.ROLLING_BACK, AFTER_FLIP, {"new": "active"}, (OLD, None, "roll_back")),
        (S.ROLLING_BACK, AFTER_FLIP, {"old": "active"}, (OLD, None, "roll_back")),
        (S.ROLLING_BACK, BEFORE_FLIP, {}, (OLD, None, "roll_back")),
        (S.SUCCEEDED, AFTER_FLIP, {}, (NEW, None, "nothing")),
        (S.SUCCEEDED, AFTER_FLIP, {"old": "active"}, (OLD, None, "nothing")),
        (S.ROLLED_BACK, BEFORE_FLIP, {"new": "active"}, (OLD, None, "nothing")),
    ],
)
def test_cases(state, where, running, want):
    """Each row: the state on disk, which version is where, what the gateway runs, what follows."""
    found = plan(record(state, **where), running)
    assert (found.serve, found.standby, found.resume) == want


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("routed", ["", "old", "new", "foreign"])
@pytest.mark.parametrize("where", [BEFORE_FLIP, AFTER_FLIP])
def test_never_neither(state, routed, where):
    """Whatever is found, a slot that ever served has a version to serve."""
    found = plan(record(state, **where), {routed: "active"} if routed else {})
    assert found.serve in (OLD, NEW)


@pytest.mark.parametrize("state", sorted(DONE))
def test_nothing_is_taken_up_again_that_has_ended(state):
    """A deployment that is done stays done."""
    assert plan(record(state, **AFTER_FLIP), {"new": "active"}).resume == "nothing"


def test_a_slot_that_never_ran_has_nothing_to_serve():
    """An empty record asks for nothing."""
    assert plan(SlotRecord(), {}).serve is None
