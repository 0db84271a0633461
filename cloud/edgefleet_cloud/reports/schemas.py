"""The reports' shapes in the API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.reports.service import Answered, quantile_us
from edgefleet_cloud.reports.tables import ReceiptRow, StreamRow

_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class Activation(BaseModel):
    """A digest that ran on a device `from` one time `to` another; null: it still does."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "device": "cam-1",
                    "slot": "digits",
                    "digest": _DIGEST,
                    "version": "1.0.0",
                    "kind": "activate",
                    "from": "2026-01-31T12:00:00.000Z",
                    "to": None,
                    "deployment": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                }
            ]
        },
    )

    device: str
    slot: str
    digest: str
    version: str
    kind: str
    since: str = Field(alias="from")
    until: str | None = Field(alias="to")
    deployment: str

    @classmethod
    def of(cls, row: ReceiptRow) -> Activation:
        """Return the API's shape of a row."""
        return cls(
            device=row.device,
            slot=row.slot,
            digest=row.to_digest,
            version=row.to_version,
            kind=row.kind,
            since=row.ts,
            until=row.until,
            deployment=row.deployment,
        )


class Receipt(BaseModel):
    """A swap receipt as the device wrote it. Latencies are microseconds, null where unknown."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "device": "cam-1",
                    "received": "2026-11-21T03:22:50.000Z",
                    "ts": "2026-11-21T03:22:50.000Z",
                    "kind": "activate",
                    "slot": "digits",
                    "deployment": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                    "from_digest": "",
                    "from_version": "",
                    "to_digest": _DIGEST,
                    "to_version": "1.0.0",
                    "in_flight": 0,
                    "failed": 0,
                    "requests_during": 0,
                    "ready_ms": 240,
                    "p50_us_before": None,
                    "p99_us_before": None,
                    "p99_us_during": None,
                    "p50_us_after": 410,
                    "p99_us_after": 980,
                    "memory_kb": 61440,
                    "trigger": "",
                    "p50_us_during": None,
                    "gap_us": 0,
                    "way": "overlap",
                    "pause_ms": 0,
                    "prepared": True,
                    "peak_memory_kb": 63210,
                    "accelerated_pct": 100,
                    "stand_in": "",
                    "stand_in_requests": 0,
                    "shadow": None,
                    "canary": None,
                }
            ]
        }
    )

    device: str
    received: str
    ts: str
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
    shadow: dict[str, Any] | None = None
    canary: dict[str, Any] | None = None

    @classmethod
    def of(cls, row: ReceiptRow) -> Receipt:
        """Return the API's shape of a row."""
        return cls(**row.model_dump(include=set(cls.model_fields)))


class TelemetryItem(BaseModel):
    """What one digest answered. `latency` counts by bucket of `edgefleet_shared.histogram`."""

    slot: str
    digest: str
    version: str
    devices: int
    requests: int
    client_errors: int
    server_errors: int
    rejected: int
    nonfinite: int
    replayed: int
    crashes: int
    p50_us: int | None
    p99_us: int | None
    latency: dict[int, int]
    compute_p50_us: int | None

    @classmethod
    def of(cls, found: Answered) -> TelemetryItem:
        """Return the API's shape."""
        return cls(
            slot=found.slot,
            digest=found.digest,
            version=found.version,
            devices=len(found.devices),
            **found.counts,
            p50_us=quantile_us(found.latency, 0.5),
            p99_us=quantile_us(found.latency, 0.99),
            latency=found.latency,
            compute_p50_us=quantile_us(found.compute, 0.5),
        )


class Gap(BaseModel):
    """Items of a stream that have not arrived.

    `dropped` of them the device says it dropped for want of disk; `beginnings` is how often it lost
    its outbox and numbered anew, so that nobody knows how many were lost.
    """

    device: str
    stream: str
    missing: int
    dropped: int
    beginnings: int

    @classmethod
    def of(cls, row: StreamRow) -> Gap:
        """Return the API's shape of a row."""
        return cls(**row.model_dump(include=set(cls.model_fields)))


class Telemetry(BaseModel):
    """What the models answered, and what is missing from it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "slot": "digits",
                            "digest": _DIGEST,
                            "version": "1.0.0",
                            "devices": 3,
                            "requests": 900,
                            "client_errors": 0,
                            "server_errors": 0,
                            "rejected": 0,
                            "nonfinite": 0,
                            "replayed": 0,
                            "crashes": 0,
                            "p50_us": 410,
                            "p99_us": 980,
                            "latency": {"40": 900},
                            "compute_p50_us": 120,
                        }
                    ],
                    "gaps": [
                        {
                            "device": "cam-1",
                            "stream": "telemetry",
                            "missing": 2,
                            "dropped": 2,
                            "beginnings": 0,
                        }
                    ],
                }
            ]
        }
    )

    items: list[TelemetryItem]
    gaps: list[Gap]
