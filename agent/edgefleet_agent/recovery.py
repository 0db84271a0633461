"""What to do with a slot when agentd or the gateway comes up. Pure: journal and gateway in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from edgefleet_agent.journal import SlotRecord, VersionRef
from edgefleet_shared.states import DONE, DeploymentState

Resume = Literal["nothing", "restart", "swap", "probation", "roll_back"]


class Plan(NamedTuple):
    """What comes first, and what follows.

    Attributes:
        serve: The version that must answer before anything else is done; None: no route.
        standby: A version to keep loaded beside it.
        resume: What the deployment does next.
        note: Why the journal is corrected, or ''.
    """

    serve: VersionRef | None
    standby: VersionRef | None
    resume: Resume
    note: str = ""


def plan(record: SlotRecord, running: Mapping[str, str]) -> Plan:
    """Decide. The gateway knows what the route names now; the journal knows what was meant.

    Args:
        record: The slot in the journal.
        running: What the gateway has of this model: digest to role (`active`, `standby`, `idle`).
    """
    if record.active and record.active.digest == record.given_up:
        record = msgspec.structs.replace(record, active=None)
    routed = next((digest for digest, role in running.items() if role == "active"), "")
    deployment = record.deployment
    state = deployment.state if deployment else DeploymentState.SUCCEEDED
    if deployment is None or state in DONE:
        return _settled(record, routed)
    if state is DeploymentState.SWAPPING:
        if deployment.staged and routed == deployment.staged.digest:
            # The flip was done, its mark was not: go on from the flip.
            return Plan(deployment.staged, record.active, "probation", "flipped")
        return Plan(record.active, None, "swap")
    if state is DeploymentState.PROBATION:
        if record.previous and routed == record.previous.digest:
            return Plan(record.previous, None, "roll_back", "fell_back")
        return Plan(record.active, record.previous, "probation")
    if state is DeploymentState.ROLLING_BACK:
        return Plan(last_good(record), None, "roll_back")
    return Plan(record.active, None, "restart")


def last_good(record: SlotRecord) -> VersionRef | None:
    """Return what a rollback goes back to: a swap may fail before the route has moved."""
    staged = record.deployment.staged if record.deployment else None
    good = record.previous if record.active == staged else record.active
    return None if good and good.digest == record.given_up else good


def _settled(record: SlotRecord, routed: str) -> Plan:
    if record.previous and routed == record.previous.digest and record.active:
        return Plan(record.previous, None, "nothing", "fell_back")
    return Plan(record.active, None, "nothing")
