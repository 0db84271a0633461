"""SQL of what hubs' registries hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import CursorResult, delete, func, or_, select, update
from sqlmodel import Session, col

from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.iothub.event_tables import IotHubDeviceRow, IotHubRow


def hub(session: Session, name: str) -> IotHubRow:
    """Return the row of a hub, a new one if there is none."""
    return session.get(IotHubRow, name) or IotHubRow(name=name)


def lease(session: Session, name: str, owner: str, now: str, until: str) -> bool:
    """Take or keep the turn to read a hub's registry; return whether nobody else has it."""
    if session.get(IotHubRow, name) is None:
        session.add(IotHubRow(name=name))
        session.flush()
    free = or_(col(IotHubRow.owner) == owner, col(IotHubRow.until) < now)
    statement = (
        update(IotHubRow)
        .where(col(IotHubRow.name) == name, free)
        .values(owner=owner, until=until)
        .execution_options(synchronize_session=False)
    )
    done = session.execute(statement)
    assert isinstance(done, CursorResult)
    return done.rowcount == 1


def ours(session: Session, ids: Sequence[str]) -> Mapping[str, DeviceRow]:
    """Return our devices among these."""
    found = session.scalars(select(DeviceRow).where(col(DeviceRow.id).in_(ids)))
    return {row.id: row for row in found}


def known(session: Session, name: str, ids: Sequence[str]) -> Mapping[str, IotHubDeviceRow]:
    """Return what is known of these devices at a hub."""
    found = session.scalars(
        select(IotHubDeviceRow).where(
            col(IotHubDeviceRow.hub) == name, col(IotHubDeviceRow.device).in_(ids)
        )
    )
    return {row.device: row for row in found}


def unseen(session: Session, name: str, since: str) -> Sequence[str]:
    """Return the devices that have spoken by a hub and were not in its registry since then."""
    seen = select(col(IotHubDeviceRow.device)).where(
        col(IotHubDeviceRow.hub) == name, col(IotHubDeviceRow.looked) >= since
    )
    query = select(col(DeviceRow.id)).where(
        col(DeviceRow.way) == name,
        col(DeviceRow.state) == ENROLLED,
        col(DeviceRow.reported_at).is_not(None),  # else it is being put there, perhaps
        col(DeviceRow.id).not_in(seen),
    )
    return session.scalars(query.order_by(col(DeviceRow.id))).all()


def drop_gone(session: Session, name: str, since: str) -> None:
    """Forget unknown devices that the hub does not know any more either."""
    session.execute(
        delete(IotHubDeviceRow).where(
            col(IotHubDeviceRow.hub) == name,
            col(IotHubDeviceRow.unknown).is_(True),
            col(IotHubDeviceRow.looked) < since,
        )
    )


def listed(session: Session, name: str, which: str, limit: int) -> tuple[int, Sequence[str]]:
    """Return how many devices are `unknown` or `missing` at a hub, and the first of them."""
    where = (col(IotHubDeviceRow.hub) == name, col(getattr(IotHubDeviceRow, which)).is_(True))
    count = session.scalar(select(func.count()).select_from(IotHubDeviceRow).where(*where)) or 0
    query = select(col(IotHubDeviceRow.device)).where(*where)
    return count, session.scalars(query.order_by(col(IotHubDeviceRow.device)).limit(limit)).all()
