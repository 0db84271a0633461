"""The public keys of enrolled devices: `ports.DeviceKeys`."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import Key, SSlibKey

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow


def key_of_row(row: DeviceRow | None) -> Key | None:
    """Return the key that a device signs with; None unless it is enrolled."""
    if row is None or row.state != ENROLLED or not row.public_key:
        return None
    return SSlibKey.from_crypto(load_pem_public_key(row.public_key.encode()))


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
