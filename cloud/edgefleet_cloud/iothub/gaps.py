"""What is done where events of a hub cannot be had any more: it is told, and its registry read.

A report that was lost with its event still lies in the device's twin, where `sync` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from edgefleet_cloud.database import Database
from edgefleet_cloud.iothub.checkpoints import Source
from edgefleet_cloud.iothub.event_tables import IotHubRow
from edgefleet_cloud.ports import EventSink
from edgefleet_shared.steps import Step


class Gaps:
    """Notes gaps of one hub's events; each method is one transaction.

    Args:
        hub: Its name in cloud.toml.
        database: Where it is noted.
        events: The fleet's log.
    """

    def __init__(self, hub: str, database: Database, events: EventSink) -> None:
        self._hub = hub
        self._database = database
        self._events = events

    def reads_at(self, source: Source) -> None:
        """Note where events are read; another place than before, as after a failover, is told."""
        here = (source.namespace, source.eventhub)
        with self._database.write() as session:
            row = session.get(IotHubRow, self._hub) or IotHubRow(name=self._hub)
            before = (row.namespace, row.eventhub)
            if before == here:
                return
            row.namespace, row.eventhub = here
            if before != ("", ""):
                row.due = True
                self._tell(
                    session, "iothub.events_moved",
                    f"The events of IoT Hub {self._hub} are read at {'/'.join(here)} from now on, "
                    "from the oldest there is.",
                    {"before": "/".join(before), "after": "/".join(here)},
                )  # fmt: skip
            session.add(row)

    def lost(self, partition: str, count: int | None) -> None:
        """Note that events after the position in a partition are there no more.

        Args:
            partition: Its number.
            count: How many; None: the position belongs to another stream.
        """
        if count is None:
            kind = "iothub.events_anew"
            message = (
                f"Partition {partition} of IoT Hub {self._hub} is not the one that was read: "
                "it is read anew, from the oldest event there is."
            )
        else:
            kind = "iothub.events_lost"
            message = (
                f"{count} events in partition {partition} of IoT Hub {self._hub} were dropped by "
                "its retention before they were read; its registry will be read instead."
            )
        with self._database.write() as session:
            row = session.get(IotHubRow, self._hub) or IotHubRow(name=self._hub)
            row.due = True
            session.add(row)
            self._tell(session, kind, message, {"partition": partition, "events": count})

    def _tell(self, session: Session, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self._events.record(
            session,
            type=kind,
            step=Step.REPORT,
            subject=f"iothubs/{self._hub}",
            message=message,
            data=data,
        )
