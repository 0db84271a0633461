"""The tables by which deployments and rollouts live."""

from __future__ import annotations

from itertools import product

import pytest

from edgefleet_shared import states
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.states import (
    DEPLOYMENT,
    DONE,
    ROLLOUT,
    DeploymentEvent,
    DeploymentState,
    RolloutEvent,
    RolloutState,
    advance,
    reachable,
)

# Written by hand: whoever changes the table changes the law, and says so here.
SNAPSHOT = """
assigned: cancel>canceled offer>offered supersede>superseded
offered: accept>accepted cancel>canceled reject>rejected supersede>superseded time_out>timed_out
accepted: cancel>canceled fail>failed fetch>downloading found_current>already_current \
reject>rejected resume>accepted supersede>superseded time_out>timed_out
downloading: cancel>canceled fail>failed find_no_variant>no_compatible_variant reject>rejected \
resume>accepted supersede>superseded time_out>timed_out verify>verifying
verifying: cancel>canceled fail>failed prepare>preparing reject>rejected resume>accepted \
supersede>superseded time_out>timed_out
preparing: cancel>canceled fail>failed resume>accepted stage>staged supersede>superseded \
time_out>timed_out
staged: cancel>canceled fail>failed resume>accepted supersede>superseded swap>swapping \
time_out>timed_out
swapping: roll_back>rolling_back serve>probation
probation: roll_back>rolling_back succeed>succeeded
rolling_back: rollback_fail>rollback_failed rolled_back>rolled_back
""".strip().splitlines()

ROLLOUT_SNAPSHOT = """
draft: start>running stop>stopped
running: complete>completed pause>paused roll_back>rolling_back stop>stopped supersede>superseded
paused: resume>running roll_back>rolling_back stop>stopped supersede>superseded
stopped: roll_back>rolling_back
rolling_back: rolled_back>rolled_back supersede>superseded
completed: roll_back>rolling_back supersede>superseded
""".strip().splitlines()


def written(table, order) -> list[str]:
    """Return a table as lines `state: event>next ...`."""
    lines = []
    for state in order:
        exits = sorted(f"{e}>{after}" for (s, e), after in table.items() if s == state)
        if exits:
            lines.append(f"{state}: {' '.join(exits)}")
    return lines


def test_the_deployment_table_is_as_agreed():
    """Every transition of a device deployment, and none more."""
    assert written(DEPLOYMENT, DeploymentState) == SNAPSHOT


def test_the_rollout_table_is_as_agreed():
    """Every transition of a rollout, and none more."""
    assert written(ROLLOUT, RolloutState) == ROLLOUT_SNAPSHOT


def test_every_state_can_be_reached():
    """No deployment state stands in the list for nothing, and no event either."""
    assert reachable(DeploymentState.ASSIGNED) == set(DeploymentState) - {DeploymentState.ASSIGNED}
    assert {event for _, event in DEPLOYMENT} == set(DeploymentEvent)
    assert {*ROLLOUT.values(), RolloutState.DRAFT} == set(RolloutState)
    assert {event for _, event in ROLLOUT} == set(RolloutEvent)


def test_what_is_done_stays_done():
    """A DONE state has no exit, every other has one, and the three kinds of DONE are apart."""
    for state in DeploymentState:
        assert bool(reachable(state)) == (state not in DONE)
    assert len(DONE) == sum(map(len, (states.DONE_OK, states.DONE_NOT_OK, states.DONE_NEUTRAL)))


def test_every_deployment_can_end():
    """From everywhere some DONE state lies ahead: nothing can be stuck by the table."""
    for state in set(DeploymentState) - DONE:
        assert reachable(state) & DONE


def test_resume_begins_again_only_before_the_swap():
    """Power loss sends work back to `accepted`, but never once the route may have moved."""
    resumable = {s for s, e in DEPLOYMENT if e is DeploymentEvent.RESUME}
    assert resumable == {
        DeploymentState.ACCEPTED, DeploymentState.DOWNLOADING, DeploymentState.VERIFYING,
        DeploymentState.PREPARING, DeploymentState.STAGED,
    }  # fmt: skip
    assert {DEPLOYMENT[s, DeploymentEvent.RESUME] for s in resumable} == {DeploymentState.ACCEPTED}
    assert not resumable & reachable(DeploymentState.SWAPPING)


def test_nothing_fails_or_is_canceled_after_the_swap_began():
    """From `swapping` on the only ways out are good or back."""
    ends = reachable(DeploymentState.SWAPPING) & DONE
    assert ends == {
        DeploymentState.SUCCEEDED, DeploymentState.ROLLED_BACK, DeploymentState.ROLLBACK_FAILED,
    }  # fmt: skip


def test_states_only_go_forward_within_an_attempt():
    """RESUME aside, no state can come again."""
    for state in DeploymentState:
        assert state not in reachable(state)


def test_touched_is_what_met_the_release():
    """A device is touched once it accepted or refused; waiting and withdrawn ones are not."""
    assert set(DeploymentState) - states.TOUCHED == {
        DeploymentState.ASSIGNED, DeploymentState.OFFERED, DeploymentState.CANCELED,
        DeploymentState.SUPERSEDED,
    }  # fmt: skip


def test_advance_follows_the_table():
    """Each line of the table is what `advance` does."""
    for (state, event), after in DEPLOYMENT.items():
        assert advance(DEPLOYMENT, state, event) is after


def test_advance_refuses_everything_else():
    """What the table lacks, is refused with the ways that are open."""
    for state, event in {*product(DeploymentState, DeploymentEvent)} - DEPLOYMENT.keys():
        with pytest.raises(InvalidInputError) as refused:
            advance(DEPLOYMENT, state, event)
        exits = sorted(e.value for s, e in DEPLOYMENT if s == state)
        assert refused.value.code == "transition"
        assert refused.value.hint == f"From here: {', '.join(exits) or 'nothing'}."
