"""The public keys of enrolled devices: `ports.DeviceKeys`."""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import Key, SSlibKey
from sqlmodel import Session

from edgefleet_cloud.authority import repository as certificates
from edgefleet_cloud.authority.service import OVERLAP
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_shared.times import format_time, parse_time


def key_of_row(row: DeviceRow | None) -> Key | None:
    """Return the key that a device signs with; None unless it is enrolled."""
    if row is None or row.state != ENROLLED or not row.public_key:
        return None
    return SSlibKey.from_crypto(load_pem_public_key(row.public_key.encode()))


def previous_key_of_row(row: DeviceRow, now: datetime) -> Key | None:
    """Return the key that a device signed with before its last renewal, while it counts; or None.

    It counts until its successor has been heard, for until then the device may not even know that
    it was renewed; and ten minutes more, for what is still on its way.
    """
    if row.state != ENROLLED or not row.previous_key:
        return None
    if row.previous_until is not None and parse_time(row.previous_until) <= now:
        return None
    return SSlibKey.from_crypto(load_pem_public_key(row.previous_key.encode()))


def heard(session: Session, row: DeviceRow, now: datetime) -> None:
    """Note that a device has signed with its present key: the one before it soon counts no more."""
    if row.previous_key and row.previous_until is None:
        end = format_time(now + OVERLAP)
        row.previous_until = end
        session.add(row)
        certificates.supersede(session, row.id, keep=row.key, since=end)


class DeviceKeys:
    """Looks keys up in the devices' table.

    Args:
        database: Asked anew for each key: a device that was decommissioned has none at once.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def key_of(self, device_id: str) -> Key | None:
        """Return the key of an enrolled device; None if it has none or is decommissioned."""
        with self._database.read() as session:
            return key_of_row(repository.find(session, device_id))
