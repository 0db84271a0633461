"""IoT Hubs as the API shows them."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from edgefleet_cloud.iothub.partitions import Lag
from edgefleet_cloud.iothub.status import Disagreement, Standing


class TwinUpdates(BaseModel):
    """How the tier's limit of twin updates is used: writes of ours and reports of devices."""

    limit_per_s: float
    last_minute: int
    used_pct: float
    throttled: int


class Documents(BaseModel):
    """What this server has to tell devices: twins written since its start, and still to write."""

    sent: int
    pending: int


class PartitionLag(BaseModel):
    """How far the events of a partition are behind; `here`: this server reads it."""

    partition: str
    events: int
    seconds: float
    here: bool

    @classmethod
    def of(cls, lag: Lag) -> Self:
        """Return a partition."""
        return cls(**lag._asdict())


class Devices(BaseModel):
    """Devices that only one side knows: how many, and the first hundred of them.

    Who may see a part of the fleet only gets no names.
    """

    count: int
    first: list[str]

    @classmethod
    def of(cls, found: Disagreement) -> Self:
        """Return such devices."""
        return cls(count=found.total, first=list(found.first))


class RegistryState(BaseModel):
    """The hub's registry, as it was last read to the end.

    `due`: something was missed, so that it is read again soon. `repaired`: reports that were taken
    from twins then, because their events had not come.
    """

    synced: str | None
    due: bool
    devices: int
    repaired: int
    unknown: Devices
    missing: Devices


class IotHubStatus(BaseModel):
    """One hub: `connected` both ways, `listening` for events; `devices` speak by it.

    `default`: new devices are told it where their ticket says no other way.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "main",
                    "host": "fleet.azure-devices.net",
                    "tier": "S1",
                    "units": 1,
                    "default": True,
                    "connected": True,
                    "listening": True,
                    "devices": 5000,
                    "twin_updates": {
                        "limit_per_s": 50.0,
                        "last_minute": 2610,
                        "used_pct": 87.0,
                        "throttled": 0,
                    },
                    "documents": {"sent": 1200, "pending": 3800},
                    "partitions": [{"partition": "0", "events": 0, "seconds": 0.0, "here": True}],
                    "registry": {
                        "synced": "2026-11-21T03:22:50.000Z",
                        "due": False,
                        "devices": 5001,
                        "repaired": 0,
                        "unknown": {"count": 1, "first": ["stranger"]},
                        "missing": {"count": 0, "first": []},
                    },
                }
            ]
        }
    )

    name: str
    host: str
    tier: str
    units: int
    default: bool
    connected: bool
    listening: bool
    devices: int
    twin_updates: TwinUpdates
    documents: Documents
    partitions: list[PartitionLag]
    registry: RegistryState

    @classmethod
    def of(cls, found: Standing) -> Self:
        """Return a hub as it stands."""
        (hub, down, up), row = found.view, found.row
        usage = down.usage()
        used = 100.0 * usage.updates_per_minute / (60.0 * usage.limit)
        return cls(
            name=hub.name,
            host=hub.host,
            tier=hub.tier,
            units=hub.units,
            default=hub.default,
            connected=down.connected,
            listening=up.connected,
            devices=found.devices,
            twin_updates=TwinUpdates(
                limit_per_s=usage.limit,
                last_minute=usage.updates_per_minute,
                used_pct=round(used, 1),
                throttled=usage.throttled,
            ),
            documents=Documents(sent=down.sent, pending=down.pending),
            partitions=[PartitionLag.of(lag) for lag in up.lags],
            registry=RegistryState(
                synced=row.synced or None,
                due=row.due,
                devices=row.devices,
                repaired=row.repaired,
                unknown=Devices.of(found.unknown),
                missing=Devices.of(found.missing),
            ),
        )


class Admission(BaseModel):
    """A device that a hub is made to know, and the URL by which the device may come."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"hub": "main", "device": "cam-1", "url": "iothub://fleet.azure-devices.net"}
            ]
        }
    )

    hub: str
    device: str
    url: str


class Answer(BaseModel):
    """What a device has answered, and after how many milliseconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"hub": "main", "device": "cam-1", "agent": "0.1.0", "boot": "", "ms": 84}]
        }
    )

    hub: str
    device: str
    agent: str
    boot: str
    ms: int
