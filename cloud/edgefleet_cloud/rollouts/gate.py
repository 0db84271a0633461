"""What a wave must show before the next one starts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Gate(BaseModel):
    """The rule that lets a wave pass.

    Attributes:
        min_devices: Devices that must have an outcome before any verdict; never more than the wave
            has.
        max_failures: Failures that are still fine. One more and the rollout acts at once.
        min_success_pct: Share of the devices with an outcome that must be well. 100 unless
            `max_failures` allows some.
        bake_s: Seconds that a good wave is watched before it passes.
        deadline_s: Seconds after its release at which a wave is judged by what it has.
        inconclusive: What a lack of evidence does (a probation with too few requests, devices
            that fell silent): `pass` counts it as good once `min_devices` are well, `hold`
            pauses the rollout.
        on_fail: What a failure does: `stop` withdraws what has not been swapped, `pause` waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_devices: int = Field(default=1, ge=1, le=1_000_000)
    max_failures: int = Field(default=0, ge=0, le=1_000_000)
    min_success_pct: int = Field(
        default_factory=lambda data: 0 if data.get("max_failures") else 100, ge=0, le=100
    )
    bake_s: int = Field(default=0, ge=0, le=30 * 86400)
    deadline_s: int = Field(default=3600, ge=1, le=365 * 86400)
    inconclusive: Literal["pass", "hold"] = "pass"
    on_fail: Literal["stop", "pause"] = "stop"
