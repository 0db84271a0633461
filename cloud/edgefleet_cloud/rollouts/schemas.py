"""The rollouts' shapes in the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgefleet_cloud.rollouts.gate import Gate
from edgefleet_cloud.rollouts.tables import DeploymentRow, RolloutRow, WaveRow
from edgefleet_shared.messages import Policy, SwapWay
from edgefleet_shared.times import parse_time

_DAYS = 86400


class NewPolicy(BaseModel):
    """How a device treats the version during its probation; what is left out keeps its default."""

    model_config = ConfigDict(extra="forbid")

    probation_s: int = Field(default=Policy().probation_s, ge=0, le=30 * _DAYS)
    min_requests: int = Field(default=Policy().min_requests, ge=0, le=10**9)
    max_error_ppm: int = Field(default=Policy().max_error_ppm, ge=0, le=10**6)
    max_nonfinite_ppm: int = Field(default=Policy().max_nonfinite_ppm, ge=0, le=10**6)
    max_latency_pct: int = Field(default=Policy().max_latency_pct, ge=0, le=10**6)
    max_crashes: int = Field(default=Policy().max_crashes, ge=0, le=1000)
    standby_s: int = Field(default=Policy().standby_s, ge=0, le=30 * _DAYS)
    drain_s: int = Field(default=Policy().drain_s, ge=0, le=_DAYS)
    swap: SwapWay = Policy().swap
    shadow_s: int = Field(default=Policy().shadow_s, ge=0, le=30 * _DAYS)
    shadow_pct: int = Field(default=Policy().shadow_pct, ge=0, le=100)
    min_agreement_pct: int = Field(default=Policy().min_agreement_pct, ge=0, le=100)
    canary_s: int = Field(default=Policy().canary_s, ge=0, le=30 * _DAYS)
    canary_pct: int = Field(default=Policy().canary_pct, ge=0, le=100)

    @property
    def watched_s(self) -> int:
        """Seconds for which a device looks at a version before it says how it is."""
        return self.shadow_s + self.canary_s + self.probation_s


class NewWave(BaseModel):
    """One wave: named devices, a number of them, a share of all, or the rest."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    devices: list[str] | None = Field(default=None, min_length=1)
    count: int | None = Field(default=None, ge=1)
    percent: float | None = Field(default=None, gt=0, le=100)
    rest: bool = False
    gate: Gate | None = None

    @model_validator(mode="after")
    def _one_way(self) -> NewWave:
        ways = [self.devices is not None, self.count is not None, self.percent is not None]
        if sum([*ways, self.rest]) != 1:
            raise ValueError(
                f"wave {self.name!r} needs exactly one of devices, count, percent and rest"
            )
        return self


class NewRollout(BaseModel):
    """A rollout to make. At most one of group, selector and devices says for whom; else all."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "digits",
                    "version": "2.0.0",
                    "selector": "labels.site == 'berlin'",
                    "waves": [
                        {"name": "canary", "devices": ["cam-1"]},
                        {"name": "tenth", "percent": 10, "gate": {"min_devices": 3}},
                        {"name": "rest", "rest": True},
                    ],
                    "gate": {"max_failures": 0, "bake_s": 60},
                    "policy": {"probation_s": 60},
                    "reason": "better on sevens",
                }
            ]
        },
    )

    model: str
    version: str
    group: str | None = None
    selector: str | None = None
    devices: list[str] | None = Field(default=None, min_length=1)
    waves: list[NewWave] = Field(
        default_factory=lambda: [NewWave(name="all", rest=True)], min_length=1, max_length=50
    )
    gate: Gate = Field(default_factory=Gate)
    policy: NewPolicy = Field(default_factory=NewPolicy)
    dry_run: bool = False
    start: bool = True
    reason: str = Field(default="", max_length=500)

    @field_validator("devices")
    @classmethod
    def _once_each(cls, devices: list[str] | None) -> list[str] | None:
        if devices and len(set(devices)) != len(devices):
            raise ValueError("a device is named twice")
        return devices

    @model_validator(mode="after")
    def _sound(self) -> NewRollout:
        ways = (self.group, self.selector, self.devices)
        if sum(way is not None for way in ways) > 1:
            raise ValueError("say for whom by one of group, selector and devices")
        shortest = min(gate.deadline_s for gate in self.gates())
        if shortest <= self.policy.watched_s:
            raise ValueError(
                f"a deadline_s of {shortest} ends before probation, which lasts "
                f"{self.policy.watched_s} s with what comes before it"
            )
        return self

    def named(self) -> list[str]:
        """Return the devices that are named one by one, by the rollout or by all of its waves."""
        if self.devices is not None:
            return self.devices
        if any(wave.devices is None for wave in self.waves):
            return []
        return [device for wave in self.waves for device in dict.fromkeys(wave.devices or ())]

    def gates(self) -> list[Gate]:
        """Return the gate of each wave; a deadline that nobody set leaves time for probation."""
        ample = max(3600, 2 * self.policy.watched_s + 600)
        gates = [wave.gate or self.gate for wave in self.waves]
        return [
            gate
            if "deadline_s" in gate.model_fields_set
            else gate.model_copy(update={"deadline_s": ample})
            for gate in gates
        ]


class Reason(BaseModel):
    """Why somebody starts, pauses, resumes, stops or rolls back."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "seen and accepted"}]}
    )

    reason: str = Field(default="", max_length=500)


class Wave(BaseModel):
    """One wave of a rollout. `unreachable`: never accepted and not heard lately; not counted."""

    name: str
    state: str
    index: int
    devices: list[str]
    counts: dict[str, int]
    unreachable: list[str]
    reason: str
    gate: Gate
    released: str | None


class Rollout(BaseModel):
    """One model version on its way to many devices."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                    "model": "digits",
                    "version": "2.0.0",
                    "manifest": "sha256:" + "9f86d081" * 8,
                    "state": "running",
                    "reason": "better on sevens",
                    "pause_code": "",
                    "actor": "token/admin",
                    "created": "2026-01-31T12:00:00.000Z",
                    "started": "2026-01-31T12:00:00.000Z",
                    "finished": None,
                    "waves": [
                        {
                            "name": "canary",
                            "state": "releasing",
                            "index": 0,
                            "devices": ["cam-1"],
                            "counts": {"probation": 1},
                            "unreachable": [],
                            "reason": "",
                            "gate": {},
                            "released": "2026-01-31T12:00:00.000Z",
                        }
                    ],
                    "counts": {"probation": 1, "assigned": 2},
                    "gate": {},
                    "policy": {},
                }
            ]
        }
    )

    id: str
    model: str
    version: str
    manifest: str
    state: str
    reason: str
    pause_code: str
    created: str
    started: str | None
    finished: str | None
    actor: str
    waves: list[Wave]
    counts: dict[str, int]
    gate: Gate
    policy: dict[str, Any]

    @classmethod
    def of(
        cls,
        row: RolloutRow,
        waves: Sequence[WaveRow],
        devices: Mapping[int, Sequence[str]],
        counts: Mapping[int, Mapping[str, int]],
        unreachable: Mapping[int, Sequence[str]],
    ) -> Rollout:
        """Return the API's shape of a rollout and its waves."""
        total: dict[str, int] = {}
        for states in counts.values():
            for state, count in states.items():
                total[state] = total.get(state, 0) + count
        shapes = [
            Wave(
                name=wave.name,
                state=wave.state,
                index=wave.position,
                devices=list(devices.get(wave.position, ())),
                counts=dict(counts.get(wave.position, {})),
                unreachable=list(unreachable.get(wave.position, ())),
                reason=wave.reason,
                gate=Gate(**wave.gate),
                released=wave.released,
            )
            for wave in waves
        ]
        fields = row.model_dump(include=set(cls.model_fields) - {"waves", "counts"})
        return cls(**fields, waves=shapes, counts=total)


class PlannedWave(BaseModel):
    """One wave of a plan."""

    name: str
    index: int
    devices: list[str]
    bytes: int
    gate: Gate


class PlanConflict(BaseModel):
    """What an operator should know: not_enrolled, incompatible, supersedes or current."""

    device: str
    kind: str
    message: str


class RolloutPlan(BaseModel):
    """What a rollout would do; nothing has been changed. `bytes` is an upper bound."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dry_run": True,
                    "model": "digits",
                    "version": "2.0.0",
                    "manifest": "sha256:" + "9f86d081" * 8,
                    "devices": 1,
                    "bytes": 4711,
                    "waves": [
                        {
                            "name": "all",
                            "index": 0,
                            "devices": ["cam-1"],
                            "bytes": 4711,
                            "gate": {"max_failures": 0},
                        }
                    ],
                    "conflicts": [],
                    "supersedes": [],
                }
            ]
        }
    )

    dry_run: bool = True
    model: str
    version: str
    manifest: str
    devices: int
    bytes: int
    waves: list[PlannedWave]
    conflicts: list[PlanConflict]
    supersedes: list[str]


class DeviceDeployment(BaseModel):
    """One revision of what one slot of a device should run, and how far the device is with it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2c",
                    "device": "cam-1",
                    "kind": "forward",
                    "rollout": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                    "wave": "canary",
                    "mode": "run",
                    "model": "digits",
                    "version": "2.0.0",
                    "manifest": "sha256:" + "9f86d081" * 8,
                    "state": "probation",
                    "reason": "",
                    "detail": "",
                    "verdict": "",
                    "attempt": 1,
                    "seq": 9,
                    "created": "2026-01-31T12:00:00.000Z",
                    "updated": "2026-01-31T12:00:04.000Z",
                    "age_s": 3.2,
                }
            ]
        }
    )

    id: str
    device: str
    kind: str
    rollout: str
    wave: str
    mode: str
    model: str
    version: str
    manifest: str
    state: str
    reason: str
    detail: str
    verdict: str
    attempt: int
    seq: int
    created: str
    updated: str
    age_s: float

    @classmethod
    def of(cls, row: DeploymentRow, wave: str, now: datetime) -> DeviceDeployment:
        """Return the API's shape of a row; `age_s` is the time since its last change."""
        fields = row.model_dump(include=set(cls.model_fields) - {"wave", "age_s"})
        age = max(0.0, (now - parse_time(row.updated)).total_seconds())
        return cls(**fields, wave=wave, age_s=round(age, 3))


def policy_json(policy: NewPolicy) -> dict[str, Any]:
    """Return a policy as it is stored, checked against the wire's type."""
    found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(policy.model_dump(), Policy))
    return found
