"""What devices report about their deployments: states only go forward, and old news changes none.

`DEPLOYMENT` in `edgefleet_shared.states` is the law; a report may skip states but not go back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sqlmodel import Session

from edgefleet_cloud.database import after_commit
from edgefleet_cloud.ports import Releases
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.slots import Goal, Slots
from edgefleet_cloud.rollouts.tables import DeploymentRow
from edgefleet_shared.messages import Reported, SlotReport
from edgefleet_shared.states import DONE, DONE_NOT_OK, DeploymentState, reachable

_S = DeploymentState
_MOVED = frozenset({_S.SWAPPING, _S.PROBATION, _S.ROLLING_BACK})
_DEVICE_SAYS = frozenset(_S) - {_S.ASSIGNED, _S.OFFERED}


class Reports:
    """Takes what devices say into their deployments.

    Args:
        slots: Writes states, and takes desired back after a bad end.
        releases: Knows which version a device means by a digest.
        wake: Called with a rollout's id, after the commit, when one of its devices moved.
    """

    def __init__(self, slots: Slots, releases: Releases, wake: Callable[[str], None]) -> None:
        self._slots = slots
        self._releases = releases
        self._wake = wake

    def apply(self, session: Session, device: str, reported: Reported) -> None:
        """Move the deployments that a report speaks of; the caller commits."""
        for slot, report in reported.slots.items():
            row = repository.find_deployment(session, report.deployment)
            # A deployment of another device or slot is no business of this one.
            if row is None or row.device != device or row.model != slot:
                continue
            self._conclude_older(session, row, report)
            if self._take(session, row, report) and row.rollout:
                after_commit(session, partial(self._wake, row.rollout))

    def _take(self, session: Session, row: DeploymentRow, report: SlotReport) -> bool:
        """Take one slot's report; return whether the state moved."""
        now, news = _S(row.state), _state(report.state)
        if news is None or now in DONE or (report.attempt, report.seq) <= (row.attempt, row.seq):
            return False
        again = report.attempt > row.attempt > 0
        if news is not now and news not in _ahead(now, again=again):
            return False
        row.attempt, row.seq = report.attempt, report.seq
        row.detail, row.verdict = report.detail, report.verdict
        session.add(row)
        if news is now:
            return False
        self._slots.enter(
            session,
            row,
            news,
            reason=report.reason,
            actor=f"devices/{row.device}",
            detail=report.detail,
        )
        if news in DONE_NOT_OK:
            self._slots.settle(session, row, self._serving(session, row, report))
        return True

    def _serving(self, session: Session, row: DeploymentRow, report: SlotReport) -> Goal | None:
        """Return the goal that keeps what the device serves now; None if it serves nothing."""
        if not report.active:
            return None
        release = self._releases.by_manifest(session, report.active)
        if release is not None and release.model == row.model:
            return Goal.of_release(release, row.policy)
        return Goal(**row.before) if row.before else None

    def _conclude_older(self, session: Session, row: DeploymentRow, report: SlotReport) -> None:
        """End deployments that the device has left behind without saying how they ended.

        It takes one at a time, so one that was past its swap has ended, well if its version stayed.
        """
        for old in repository.unfinished_of(session, row.device, row.model):
            if old.id >= row.id or _S(old.state) not in _MOVED:
                continue
            kept = old.manifest in {report.active, report.previous}
            end = _S.SUCCEEDED if kept and old.state != _S.ROLLING_BACK.value else _S.ROLLED_BACK
            old.verdict = old.verdict or "inconclusive"
            self._slots.enter(session, old, end, reason="moved_on", actor=f"devices/{row.device}")
            if old.rollout:
                after_commit(session, partial(self._wake, old.rollout))


def _state(text: str) -> DeploymentState | None:
    """Return the state that a device names; None for one that is not a device's to say."""
    try:
        state = _S(text)
    except ValueError:
        return None
    return state if state in _DEVICE_SAYS else None


def _ahead(now: DeploymentState, *, again: bool) -> frozenset[DeploymentState]:
    """Return the states a report may bring; work begun again starts over before the swap."""
    if again and now not in _MOVED:
        return reachable(_S.ACCEPTED) | {_S.ACCEPTED}
    return reachable(now)
