"""SQL of what is known of the devices at hubs. Here alone rows are made and changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, or_, select
from sqlmodel import Session, col

from edgefleet_cloud.devices.tables import DECOMMISSIONED, ENROLLED, REVOKED, DeviceRow
from edgefleet_cloud.iothub.tables import ABSENT, DISABLED, ENABLED, IotHubTwinRow

WANTED = {ENROLLED: ENABLED, REVOKED: DISABLED, DECOMMISSIONED: ABSENT}
"""What the registry shall say of a device in each state; of others it may say what it will."""


class Work(NamedTuple):
    """A device whose status in a registry is not as it must be."""

    device: str
    status: str
    wanted: str


def find(session: Session, device: str, hub: str) -> IotHubTwinRow | None:
    """Return what is known of a device at a hub, or None."""
    return session.get(IotHubTwinRow, (device, hub))


def change(session: Session, device: str, hub: str, now: str, **fields: Any) -> IotHubTwinRow:
    """Write what is known; a row is made where there is none."""
    row = find(session, device, hub) or IotHubTwinRow(device=device, hub=hub)
    for name, value in fields.items():
        setattr(row, name, value)
    row.changed = now
    session.add(row)
    return row


def work(session: Session, hub: str, limit: int, *, create: bool = True) -> Sequence[Work]:
    """Return what is to be done in a hub's registry; who is to be shut out comes first.

    Args:
        session: Reads.
        hub: The hub's name.
        limit: At most so many.
        create: Whether enrolled devices that are not there are to be created.
    """
    state, status = col(DeviceRow.state), col(IotHubTwinRow.status)
    undone = or_(
        and_(state == REVOKED, status.not_in([DISABLED, ABSENT])),
        and_(state == DECOMMISSIONED, status != ABSENT),
        and_(state == ENROLLED, status.not_in([ENABLED] if create else [ENABLED, ABSENT])),
    )
    query = (
        select(IotHubTwinRow.device, IotHubTwinRow.status, DeviceRow.state)  # type: ignore[call-overload]  # SQLModel types a column as its value
        .join(DeviceRow, col(DeviceRow.id) == col(IotHubTwinRow.device))
        .where(col(IotHubTwinRow.hub) == hub, undone)
        .order_by(state == ENROLLED, col(IotHubTwinRow.changed), col(IotHubTwinRow.device))
        .limit(limit)
    )
    return [Work(device, known, WANTED[state]) for device, known, state in session.execute(query)]


def hubs_of(session: Session, device: str) -> Sequence[str]:
    """Return the hubs at which a device is known."""
    query = select(IotHubTwinRow.hub).where(col(IotHubTwinRow.device) == device)  # type: ignore[call-overload]  # as above
    found: Sequence[str] = session.scalars(query).all()
    return found
