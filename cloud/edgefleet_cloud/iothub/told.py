"""What the half that listens to a hub tells the half that writes to it."""

from __future__ import annotations

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.tables import ABSENT, UNKNOWN, IotHubTwinRow
from edgefleet_cloud.ports import Clock, system_clock
from edgefleet_shared.times import format_time


class Told:
    """Takes word of devices of one hub. Safe from any thread.

    Args:
        hub: The hub's name.
        database: Where it is noted.
        pacer: The hub's limits.
        clock: Dates what is noted.
    """

    def __init__(
        self, hub: str, database: Database, pacer: Pacer, clock: Clock = system_clock
    ) -> None:
        self._hub, self._database, self._pacer, self._clock = hub, database, pacer, clock

    def seen(self, device: str, sha256: str, module: str = "") -> None:
        """A device says the digest of the document in its twin; '' = it sees none.

        What it does not see is not there, whatever we believed: it is written again, and into the
        twin of the module that asks, if one does.
        """
        with self._database.read() as session:
            row = repository.find(session, device, self._hub)
        known = row or IotHubTwinRow(device=device, hub=self._hub)
        changes = {"status": UNKNOWN} if known.status == ABSENT else {}
        if (known.sha256, known.module) != (sha256, module):
            changes |= {"sha256": "", "content": "", "renew": "", "module": module}
        if not changes or (row is None and not module):
            return
        with self._database.write() as session:
            if devices.find(session, device) is None:
                return
            now = format_time(self._clock())
            repository.change(session, device, self._hub, now, **changes)

    def reported(self, device: str) -> None:
        """A device's reported properties have changed, which the hub's limit counts."""
        self._pacer.reported(device)

    def read(self) -> None:
        """Wait until a twin may be read.

        Raises:
            UnavailableError: Not for now.
        """
        self._pacer.take("reads")

    def query(self) -> None:
        """Wait until a page of a query may be asked for.

        Raises:
            UnavailableError: Not for now.
        """
        self._pacer.take("queries")
