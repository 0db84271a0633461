"""What a hub's registry and ours disagree about, one device at a time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from edgefleet_cloud.devices.tables import DECOMMISSIONED, DeviceRow
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow
from edgefleet_cloud.iothub.repository import WANTED
from edgefleet_cloud.iothub.translate import report_of
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import REPORT_MAX_BYTES, REPORTED_TYPE, Reported
from edgefleet_shared.times import parse_time
from edgefleet_shared.twin import Document

SETTLED = timedelta(minutes=2)
"""A registry's word on a connection is some minutes late: who spoke since is left alone."""


class Finding(NamedTuple):
    """What is to be done about one device that a hub's registry holds.

    Attributes:
        unknown: It was never one of ours.
        status: The registry's word on whether it may connect, if that is wrong; '' = it is right.
        report: The report in its twin, if it is newer than the newest that has come.
        online: What the hub says of its connection, if we believe something else; else None.
    """

    unknown: bool = False
    status: str = ""
    report: Document | None = None
    online: bool | None = None


def judge(
    twin: Mapping[str, Any],
    ours: DeviceRow | None,
    known: IotHubDeviceRow | None,
    hub: str,
    now: datetime,
) -> Finding:
    """Compare one device as a hub's registry holds it with what we have.

    Args:
        twin: The whole twin, as a query answers it; a module's has no status.
        ours: Our device of that id, if there is one.
        known: What was known of it at this hub.
        hub: The hub's name.
        now: The time.
    """
    if ours is None:
        return Finding(unknown=True)
    status = str(twin.get("status") or "")
    wrong = "" if status == WANTED.get(ours.state, status) else status
    if ours.state == DECOMMISSIONED:
        return Finding(status=wrong)
    online = _connection(str(twin.get("connectionState", "")), ours, hub, now)
    return Finding(status=wrong, report=_missed(twin, ours, known), online=online)


def _missed(
    twin: Mapping[str, Any], ours: DeviceRow, known: IotHubDeviceRow | None
) -> Document | None:
    """Return a report that says of itself to be newer; one was looked at before is left alone.

    Whether it is believed is decided by whoever takes it, as always.
    """
    report = report_of(twin)
    if report is None or report.payload is None:
        return None
    if known is not None and known.report == report.sha256:
        return None
    try:
        envelope = dsse.read(report.payload, REPORTED_TYPE)
        said = strict_json.decode(
            envelope.payload, Reported, max_bytes=REPORT_MAX_BYTES, what="report"
        )
    except EdgeFleetError:
        return None
    return report if said.seq > ours.reported_seq else None


def _connection(state: str, ours: DeviceRow, hub: str, now: datetime) -> bool | None:
    if ours.way != hub or not ours.boot or state not in {"Connected", "Disconnected"}:
        return None
    online = state == "Connected"
    if online == ours.online or (ours.last_seen and now - parse_time(ours.last_seen) < SETTLED):
        return None
    return online
