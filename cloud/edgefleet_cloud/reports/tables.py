"""What devices sent. Times are RFC 3339 UTC text in the form of `times.format_time`.

`position` orders what one device sent, as text: enrolment first, then sequence number.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, Index, UniqueConstraint
from sqlmodel import Field, SQLModel


def position(enrollment: int, seq: int) -> str:
    """Return where an item stands in all that its device ever sent on one stream."""
    return f"{enrollment:06d}.{seq:016d}"


class StreamRow(SQLModel, table=True):
    """Which items of one outbox stream have arrived, and which are missing.

    Attributes:
        ranges: `Ranges.to_list()`.
        lost: `Ranges.lost`.
        missing: Numbers that have not arrived; some may still come.
        beginnings: How many times the device lost its outbox and numbered anew.
        dropped: Items that the device's disk budget dropped, as it says.
    """

    __tablename__ = "report_streams"

    device: str = Field(primary_key=True, foreign_key="devices.id")
    enrollment: int = Field(primary_key=True)
    stream: str = Field(primary_key=True)
    ranges: list[list[int]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    lost: int = 0
    missing: int = 0
    beginnings: int = 0
    dropped: int = 0


class ReceiptRow(SQLModel, table=True):
    """One swap receipt, and with it one activation: `to_digest` ran from `ts` until `until`.

    `until` is the `ts` of the slot's next receipt by position, or None while there is none, so it
    is the same in whatever order receipts arrive.
    """

    __tablename__ = "receipts"
    __table_args__ = (
        UniqueConstraint("device", "position"),
        Index("ix_receipts_slot", "device", "slot", "position"),
        Index("ix_receipts_digest", "to_digest", "ts"),
    )

    id: int | None = Field(default=None, primary_key=True)
    device: str = Field(foreign_key="devices.id")
    position: str
    received: str
    ts: str
    until: str | None = None
    kind: str
    slot: str
    deployment: str
    from_digest: str
    from_version: str
    to_digest: str
    to_version: str
    in_flight: int
    failed: int
    requests_during: int
    ready_ms: int
    p50_us_before: int | None
    p99_us_before: int | None
    p99_us_during: int | None
    p50_us_after: int | None
    p99_us_after: int | None
    memory_kb: int
    trigger: str
    p50_us_during: int | None = None
    gap_us: int = 0
    way: str = "overlap"
    pause_ms: int = 0
    prepared: bool = False
    peak_memory_kb: int = 0
    accelerated_pct: int = -1
    stand_in: str = ""
    stand_in_requests: int = 0
    shadow: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    canary: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))


class WindowRow(SQLModel, table=True):
    """One telemetry window of one model digest on one device."""

    __tablename__ = "telemetry_windows"
    __table_args__ = (
        UniqueConstraint("device", "position"),
        Index("ix_windows_slot", "slot", "digest", "end"),
    )

    id: int | None = Field(default=None, primary_key=True)
    device: str = Field(foreign_key="devices.id")
    position: str
    start: str
    end: str = Field(index=True)
    slot: str
    digest: str
    version: str
    requests: int
    client_errors: int
    server_errors: int
    rejected: int
    nonfinite: int
    replayed: int
    crashes: int
    latency: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    compute: dict[str, int] = Field(sa_column=Column(JSON, nullable=False))
    memory_kb: int
