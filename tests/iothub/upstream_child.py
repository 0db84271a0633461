"""A server of its own process that reads a hub's events: `python -m ... DATABASE EVENTS_FILE OUT`.

It writes a line for each message before its handler returns, slowly enough to be killed half-way.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from edgefleet_cloud.database import Database
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from tests.cloud.iothub_world import Told
from tests.iothub.upstream_world import TIMES, NoTwins


def main(database: str, events_file: str, out: str) -> None:
    """Read until killed."""
    where = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(topic: str, payload: bytes) -> None:
        os.write(where, f"{topic.split('/')[1]} {payload.decode()}\n".encode())
        time.sleep(0.005)

    hub = IotHub(name="main", host="fleet-a.azure-devices.test", events_file=events_file)
    needs = Needs(NoTwins(), Database(f"sqlite:///{Path(database)}"), Told(), EventLog(EventFeed()))
    Upstream(hub, needs, TIMES).start(handle)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
