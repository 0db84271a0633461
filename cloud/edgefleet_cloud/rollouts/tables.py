"""The rollouts' tables. Times are RFC 3339 UTC text in the form of `trust.format_time`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, LargeBinary
from sqlmodel import Field, SQLModel

FORWARD = "forward"
ROLLBACK = "rollback"
RESTORE = "restore"


class RolloutRow(SQLModel, table=True):
    """One model version on its way to many devices.

    Attributes:
        pause_code: Why it is paused: manual, gate_failed or gate_inconclusive; else ''.
        gate: Gate of the waves that name none.
        policy: `messages.Policy` as JSON.
        selection: What the operator asked for: group, selector or devices.
        lease_owner: The controller that drives it now, until `lease_until`.
    """

    __tablename__ = "rollouts"

    id: str = Field(primary_key=True)
    created: str = Field(index=True)
    started: str | None = None
    finished: str | None = None
    revision: int = 1
    model: str = Field(index=True)
    version: str
    manifest: str
    size: int
    release_counter: int
    state: str = Field(index=True)
    reason: str = ""
    pause_code: str = ""
    actor: str = ""
    gate: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    policy: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    selection: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    lease_owner: str = ""
    lease_until: str = ""


class WaveRow(SQLModel, table=True):
    """One wave of a rollout, in order of `position`; its members are device deployments."""

    __tablename__ = "waves"

    rollout: str = Field(primary_key=True, foreign_key="rollouts.id")
    position: int = Field(primary_key=True)
    name: str
    state: str
    reason: str = ""
    gate: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    released: str | None = None
    baking: str | None = None
    acknowledged: int = 0
    waived: bool = False


class DeploymentRow(SQLModel, table=True):
    """One revision of what one slot of a device should run, and how far the device is with it.

    Attributes:
        kind: forward (a wave's), rollback (an operator took it back) or restore (desired goes
            back to what the device serves, after a failure or a withdrawal).
        rollout: Whose it is; '' for a restore.
        wave: Position of the wave; -1 unless forward.
        mode: run or stop.
        before: What the slot was meant to run until then, as `SlotAssignment` JSON; None: nothing.
        attempt: With `seq`, the newest report that was taken.
    """

    __tablename__ = "device_deployments"

    id: str = Field(primary_key=True)
    created: str = Field(index=True)
    updated: str = Field(index=True)
    device: str = Field(index=True)
    kind: str
    rollout: str = Field(default="", index=True)
    wave: int = -1
    mode: str = "run"
    model: str
    version: str
    manifest: str
    size: int
    release_counter: int
    policy: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    before: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    state: str = Field(index=True)
    reason: str = ""
    detail: str = ""
    verdict: str = ""
    attempt: int = 0
    seq: int = 0


class DesiredSlotRow(SQLModel, table=True):
    """What one slot of a device should run now: the device deployment that says so."""

    __tablename__ = "desired_slots"

    device: str = Field(primary_key=True)
    slot: str = Field(primary_key=True)
    deployment: str = Field(foreign_key="device_deployments.id")


class AnnouncementRow(SQLModel, table=True):
    """The newest signed assignment of a device, kept so that the same bytes go out again.

    Attributes:
        content: Digest of what it says: slots and device key.
        envelope: The DSSE envelope.
        trust: Which root and targets stood when it was signed.
        sent: The broker has it.
    """

    __tablename__ = "announcements"

    device: str = Field(primary_key=True)
    counter: int
    content: str
    envelope: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    issued: str = Field(index=True)
    expires: str
    trust: str
    sent: bool = Field(default=False, index=True)
