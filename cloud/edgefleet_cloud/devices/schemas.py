"""The devices' shapes in the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.hub_config import MQTT
from edgefleet_shared.messages import SlotAssignment

_DEVICE: dict[str, Any] = {
    "id": "cam-1",
    "labels": {"site": "berlin"},
    "hardware": "generic-x86_64",
    "state": "enrolled",
    "key": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "way": "mqtt",
    "online": True,
    "last_seen": "2026-01-31T12:00:00.000Z",
    "agent": {"version": "0.1.0"},
    "counter": 3,
    "created": "2026-01-31T11:00:00.000Z",
    "slots": {"digits": {"active_version": "1.0.0", "state": "succeeded"}},
    "locked": {
        "since": "2026-01-31T12:00:00.000Z",
        "by": "anna",
        "reason": "inspection under way",
        "until": "2026-01-31T20:00:00.000Z",
    },
}


class NewDevice(BaseModel):
    """A device to register."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"id": "cam-1", "labels": {"site": "berlin"}}]},
    )

    id: str
    labels: dict[str, str] = Field(default_factory=dict)
    hardware: str = "generic-x86_64"


class NewDevices(BaseModel):
    """Devices to register, all or none; `dry_run` only checks."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"devices": [{"id": "cam-1"}, {"id": "cam-2"}], "dry_run": True}]
        },
    )

    devices: list[NewDevice] = Field(min_length=1, max_length=20_000)
    dry_run: bool = False


class Imported(BaseModel):
    """How many devices were registered, or would be."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"devices": 2, "dry_run": True}]})

    devices: int
    dry_run: bool


class DeviceChange(BaseModel):
    """A merge patch: a label that is null is removed, what is not named stays."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"labels": {"site": "paris", "old": None}}]}
    )

    labels: dict[str, str | None] | None = None
    hardware: str | None = None


class DeviceLock(BaseModel):
    """Whoever stands beside the device lets no model change; `until` "" = until it is lifted."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DEVICE["locked"]]})

    since: str
    by: str = ""
    reason: str = ""
    until: str = ""


class Device(BaseModel):
    """A device and what it last said about its slots and its owner's lock.

    `way` is where it is reached: `mqtt`, or the name of an Azure IoT Hub.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_DEVICE]})

    id: str
    labels: dict[str, str]
    hardware: str
    state: str
    key: str
    way: str
    online: bool
    last_seen: str | None
    agent: dict[str, Any]
    counter: int
    created: str
    slots: dict[str, Any]
    locked: DeviceLock | None = None

    @classmethod
    def of(cls, row: DeviceRow) -> Device:
        """Return the API's shape of a row."""
        fields = row.model_dump(include=set(cls.model_fields))
        fields["way"] = row.way or MQTT
        said = row.reported or {}
        return cls(**fields, slots=said.get("slots", {}), locked=said.get("locked"))


class DesiredState(BaseModel):
    """What the newest assignment says."""

    counter: int
    slots: dict[str, Any]


class DeviceState(BaseModel):
    """Desired beside reported; `in_sync` if every desired slot is as it should be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "desired": {
                        "counter": 1,
                        "slots": {"digits": {"mode": "run", "version": "1.0.0"}},
                    },
                    "reported": {"counter": 1, "slots": {"digits": {"active_version": "1.0.0"}}},
                    "in_sync": True,
                    "reported_at": "2026-11-21T03:22:50.000Z",
                }
            ]
        }
    )

    desired: DesiredState
    reported: dict[str, Any] | None
    in_sync: bool
    reported_at: str | None

    @classmethod
    def of(cls, row: DeviceRow, desired: Mapping[str, SlotAssignment]) -> DeviceState:
        """Return both sides of a device."""
        slots = {name: _json(slot) for name, slot in desired.items()}
        return cls(
            desired=DesiredState(counter=row.counter, slots=slots),
            reported=row.reported,
            in_sync=in_sync(row.reported, row.counter, desired),
            reported_at=row.reported_at,
        )


def in_sync(
    reported: Mapping[str, Any] | None, counter: int, desired: Mapping[str, SlotAssignment]
) -> bool:
    """Return whether a device has taken its newest assignment and runs what it says."""
    if reported is None:
        return counter == 0 and not desired
    if reported["counter"] < counter:
        return False
    slots = reported["slots"]
    return all(
        slots.get(name, {}).get("active", "") == (slot.manifest if slot.mode == "run" else "")
        for name, slot in desired.items()
    )


def _json(slot: SlotAssignment) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(slot)
    return found
