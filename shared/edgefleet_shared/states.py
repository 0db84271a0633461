"""Life of a device deployment, a wave and a rollout: (state, event) -> state, and nothing else.

The tables are the law on both sides: the device journals a transition before it acts, the fleet
manager refuses a report that no transition leads to. States only go forward inside one attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from edgefleet_shared.errors import InvalidInputError


class DeploymentState(StrEnum):
    """Where one device stands with one deployment."""

    ASSIGNED = "assigned"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PREPARING = "preparing"
    STAGED = "staged"
    SWAPPING = "swapping"
    PROBATION = "probation"
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    ALREADY_CURRENT = "already_current"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAILED = "rollback_failed"
    REJECTED = "rejected"
    NO_COMPATIBLE_VARIANT = "no_compatible_variant"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"


class DeploymentEvent(StrEnum):
    """What can happen to a device deployment."""

    OFFER = "offer"
    ACCEPT = "accept"
    FETCH = "fetch"
    VERIFY = "verify"
    PREPARE = "prepare"
    STAGE = "stage"
    SWAP = "swap"
    SERVE = "serve"
    ROLL_BACK = "roll_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_FAIL = "rollback_fail"
    SUCCEED = "succeed"
    FOUND_CURRENT = "found_current"
    FAIL = "fail"
    REJECT = "reject"
    FIND_NO_VARIANT = "find_no_variant"
    TIME_OUT = "time_out"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    RESUME = "resume"


_S, _E = DeploymentState, DeploymentEvent
_BEFORE_SWAP = (
    _S.ACCEPTED, _S.DOWNLOADING, _S.VERIFYING, _S.PREPARING, _S.STAGED,
)  # fmt: skip

DEPLOYMENT: Mapping[tuple[DeploymentState, DeploymentEvent], DeploymentState] = {
    (_S.ASSIGNED, _E.OFFER): _S.OFFERED,
    (_S.ASSIGNED, _E.CANCEL): _S.CANCELED,
    (_S.ASSIGNED, _E.SUPERSEDE): _S.SUPERSEDED,
    (_S.OFFERED, _E.ACCEPT): _S.ACCEPTED,
    (_S.OFFERED, _E.REJECT): _S.REJECTED,
    (_S.OFFERED, _E.CANCEL): _S.CANCELED,
    (_S.OFFERED, _E.SUPERSEDE): _S.SUPERSEDED,
    (_S.OFFERED, _E.TIME_OUT): _S.TIMED_OUT,
    (_S.ACCEPTED, _E.FETCH): _S.DOWNLOADING,
    (_S.ACCEPTED, _E.REJECT): _S.REJECTED,
    (_S.ACCEPTED, _E.FOUND_CURRENT): _S.ALREADY_CURRENT,
    (_S.DOWNLOADING, _E.VERIFY): _S.VERIFYING,
    (_S.VERIFYING, _E.PREPARE): _S.PREPARING,
    (_S.VERIFYING, _E.REJECT): _S.REJECTED,
    (_S.PREPARING, _E.STAGE): _S.STAGED,
    (_S.STAGED, _E.SWAP): _S.SWAPPING,
    # No FAIL from here on: once the route may have moved, the only ways out are good or back.
    (_S.SWAPPING, _E.SERVE): _S.PROBATION,
    (_S.SWAPPING, _E.ROLL_BACK): _S.ROLLING_BACK,
    (_S.PROBATION, _E.SUCCEED): _S.SUCCEEDED,
    (_S.PROBATION, _E.ROLL_BACK): _S.ROLLING_BACK,
    (_S.ROLLING_BACK, _E.ROLLED_BACK): _S.ROLLED_BACK,
    (_S.ROLLING_BACK, _E.ROLLBACK_FAIL): _S.ROLLBACK_FAILED,
    # A manifest is fetched before its variants can be judged.
    (_S.DOWNLOADING, _E.FIND_NO_VARIANT): _S.NO_COMPATIBLE_VARIANT,
    (_S.DOWNLOADING, _E.REJECT): _S.REJECTED,
    **{(state, _E.FAIL): _S.FAILED for state in _BEFORE_SWAP},
    **{(state, _E.CANCEL): _S.CANCELED for state in _BEFORE_SWAP},
    **{(state, _E.SUPERSEDE): _S.SUPERSEDED for state in _BEFORE_SWAP},
    **{(state, _E.TIME_OUT): _S.TIMED_OUT for state in _BEFORE_SWAP},
    # After power loss, work that nobody has seen begins again from what is on disk.
    **{(state, _E.RESUME): _S.ACCEPTED for state in _BEFORE_SWAP},
}

DONE_OK = frozenset({_S.SUCCEEDED, _S.ALREADY_CURRENT})
DONE_NOT_OK = frozenset({
    _S.FAILED, _S.ROLLED_BACK, _S.ROLLBACK_FAILED, _S.REJECTED, _S.NO_COMPATIBLE_VARIANT,
    _S.TIMED_OUT,
})  # fmt: skip
DONE_NEUTRAL = frozenset({_S.CANCELED, _S.SUPERSEDED})
DONE = DONE_OK | DONE_NOT_OK | DONE_NEUTRAL
TOUCHED = DONE_OK | DONE_NOT_OK | {
    _S.ACCEPTED, _S.DOWNLOADING, _S.VERIFYING, _S.PREPARING, _S.STAGED, _S.SWAPPING, _S.PROBATION,
    _S.ROLLING_BACK,
}  # fmt: skip
"""States of a device that reached `accepted` or refused: the denominator of a wave's gate."""


class WaveState(StrEnum):
    """Where one wave of a rollout stands."""

    WAITING = "waiting"
    RELEASING = "releasing"
    BAKING = "baking"
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    COMPLETED = "completed"
    SUPERSEDED = "superseded"


class RolloutEvent(StrEnum):
    """What can happen to a rollout."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    ROLL_BACK = "roll_back"
    ROLLED_BACK = "rolled_back"
    COMPLETE = "complete"
    SUPERSEDE = "supersede"


_R, _V = RolloutState, RolloutEvent

ROLLOUT: Mapping[tuple[RolloutState, RolloutEvent], RolloutState] = {
    (_R.DRAFT, _V.START): _R.RUNNING,
    (_R.DRAFT, _V.STOP): _R.STOPPED,
    (_R.RUNNING, _V.PAUSE): _R.PAUSED,
    (_R.RUNNING, _V.STOP): _R.STOPPED,
    (_R.RUNNING, _V.ROLL_BACK): _R.ROLLING_BACK,
    (_R.RUNNING, _V.COMPLETE): _R.COMPLETED,
    (_R.RUNNING, _V.SUPERSEDE): _R.SUPERSEDED,
    (_R.PAUSED, _V.RESUME): _R.RUNNING,
    (_R.PAUSED, _V.STOP): _R.STOPPED,
    (_R.PAUSED, _V.ROLL_BACK): _R.ROLLING_BACK,
    (_R.PAUSED, _V.SUPERSEDE): _R.SUPERSEDED,
    (_R.STOPPED, _V.ROLL_BACK): _R.ROLLING_BACK,
    (_R.COMPLETED, _V.ROLL_BACK): _R.ROLLING_BACK,
    (_R.COMPLETED, _V.SUPERSEDE): _R.SUPERSEDED,
    (_R.ROLLING_BACK, _V.ROLLED_BACK): _R.ROLLED_BACK,
    (_R.ROLLING_BACK, _V.SUPERSEDE): _R.SUPERSEDED,
}

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def advance(table: Mapping[tuple[S, E], S], state: S, event: E) -> S:
    """Return the state that follows.

    Raises:
        InvalidInputError: The table has no such transition (code `transition`).
    """
    try:
        return table[state, event]
    except KeyError:
        allowed = ", ".join(sorted(e.value for s, e in table if s == state)) or "nothing"
        raise InvalidInputError(
            f"{event.value!r} cannot happen in state {state.value!r}.",
            code="transition",
            hint=f"From here: {allowed}.",
        ) from None


def reachable(state: DeploymentState) -> frozenset[DeploymentState]:
    """Return every state that can follow `state`, however many transitions later, RESUME aside.

    A report is sparse: the fleet manager accepts a state that is not the next but lies ahead.
    """
    found: set[DeploymentState] = set()
    frontier = {state}
    while frontier:
        frontier = {
            after
            for (before, event), after in DEPLOYMENT.items()
            if before in frontier and event is not DeploymentEvent.RESUME
        } - found
        found |= frontier
    return frozenset(found)
