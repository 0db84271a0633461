"""What the half that listens to a hub tells the half that writes to it."""

from __future__ import annotations

from edgefleet_cloud.database import Database
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.tables import ABSENT, UNKNOWN
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

    def seen(self, device: str, sha256: str) -> None:
        """A device says the digest of the document in its twin; '' = it sees none.

        What it does not see is not there, whatever we believed: it is written again.
        """
        with self._database.read() as session:
            row = repository.find(session, device, self._hub)
        if row is None or (row.sha256 == sha256 and row.status != ABSENT):
            return
        changes = {"status": UNKNOWN} if row.status == ABSENT else {}
        if row.sha256 != sha256:
            changes |= {"sha256": "", "content": "", "renew": ""}
        with self._database.write() as session:
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
