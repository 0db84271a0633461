"""Devices that only one side knows: the hub's registry, or the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlmodel import Session

from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.devices.tables import DECOMMISSIONED
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow
from edgefleet_cloud.ports import EventSink
from edgefleet_shared.steps import Step

NAMED = 20
"""Devices that one event of the log names; a hub may be shared with thousands that are not ours."""

Kind = Literal["unknown", "missing"]
_SAYS = {
    "unknown": ("knows {} that the fleet does not", "1 device", "{} devices"),
    "missing": ("does not know {} of the fleet that should speak by it", "1 device", "{} devices"),
}


def row_of(session: Session, hub: str, device: str) -> IotHubDeviceRow:
    """Return the row of a device at a hub, a new one if there is none."""
    found = session.get(IotHubDeviceRow, (hub, device))
    return found or IotHubDeviceRow(hub=hub, device=device)


def is_ours(session: Session, device: str) -> bool:
    """Return whether a device is one of the fleet."""
    row = devices.find(session, device)
    return row is not None and row.state != DECOMMISSIONED


def speaks_by(session: Session, device: str, hub: str) -> bool:
    """Return whether a device is one of the fleet and speaks by a hub."""
    row = devices.find(session, device)
    return row is not None and row.state != DECOMMISSIONED and row.way == hub


def mark(session: Session, row: IotHubDeviceRow, kind: Kind | None) -> bool:
    """Note what is wrong with a device, or nothing; return whether that is news to be told."""
    before = row.unknown, row.missing
    row.unknown, row.missing = kind == "unknown", kind == "missing"
    session.add(row)
    return kind is not None and before != (row.unknown, row.missing)


def tell(session: Session, events: EventSink, hub: str, kind: Kind, found: Sequence[str]) -> None:
    """Tell devices in the fleet's log, all in one event; none is nothing to tell."""
    if not found:
        return
    what, one, many = _SAYS[kind]
    count = one if len(found) == 1 else many.format(len(found))
    named = [device[:80] for device in found[:NAMED]]
    more = ", ..." if len(found) > NAMED else ""
    events.record(
        session,
        type=f"iothub.devices_{kind}",
        step=Step.REPORT,
        subject=f"iothubs/{hub}",
        message=f"IoT Hub {hub} {what.format(count)}: {', '.join(named)}{more}.",
        data={"count": len(found), "devices": named},
    )
