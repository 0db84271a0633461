"""A hub's events served over AMQP, and what reads them, with a database between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.eventhub import Times
from edgefleet_cloud.iothub.upstream import Needs, Upstream
from edgefleet_provisioning.iothub_double.amqp_nodes import Entity, Namespace
from edgefleet_provisioning.iothub_double.amqp_server import EventHubsServer
from edgefleet_provisioning.iothub_double.state import Hub
from edgefleet_shared import twin
from tests.cloud.iothub_world import HubWorld

TIMES = Times(balance_s=0.2, lease_s=2.0, file_s=0.1, look_s=0.3)
PATIENCE_S = 30.0


def until(true: Callable[[], object], what: str = "it") -> None:
    """Wait until something holds; fail if it does not for half a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


class NoTwins:
    """A service API that knows no twin."""

    def twin(self, _device: str, _module: str = "") -> None:
        """Return None."""


class Endpoint:
    """An Event Hubs-compatible endpoint of a hub's events, on a port of its own."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.namespace = Namespace(hub.clock, lambda _token: 0.0)
        self.server = EventHubsServer(self.namespace, "127.0.0.1")
        self.server.start()
        self.serve(hub)

    def serve(self, hub: Hub) -> None:
        """Serve a hub's events from now on, as if it had always been this one."""
        keys = {"service": self.hub.policies["service"]}
        self.server.add("events", Entity(hub.log, keys, {"$Default"}, hub.clock.now()))

    @property
    def connection_string(self) -> str:
        """Return what a consumer connects with."""
        return (
            f"Endpoint=sb://127.0.0.1:{self.server.port}/;SharedAccessKeyName=service;"
            f"SharedAccessKey={self.hub.policies['service']};EntityPath=events;"
            "UseDevelopmentEmulator=true"
        )


class Taken:
    """A handler that writes down what it is given, by device, and may refuse some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bodies: dict[str, list[bytes]] = {}
        self.refuse: Callable[[str, bytes], None] = lambda _device, _body: None
        self.count = 0

    def __call__(self, topic: str, payload: bytes) -> None:
        device = topic.split("/")[1]
        self.refuse(device, payload)
        with self._lock:
            self.bodies.setdefault(device, []).append(payload)
            self.count += 1


class UpstreamWorld:
    """One hub with four devices, one in each partition, and servers that read it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fleet.db"
        self.events_file = folder / "events.txt"
        self.database = self.open()
        migrations.upgrade(self.database)
        self.fleet = HubWorld(self.database)
        self.hub = self.fleet.hub
        self.devices = self._devices()
        for device in self.devices:
            self.fleet.add(device)
        self.fleet.forget_events()
        self.endpoint = Endpoint(self.hub)
        self.point_to(self.endpoint)
        self._closing: list[Callable[[], object]] = [self.endpoint.server.stop]
        self._started: list[Upstream] = []

    def _devices(self) -> list[str]:
        names = (f"cam-{i}" for i in range(100))
        found: dict[int, str] = {}
        while len(found) < 4:
            name = next(names)
            found.setdefault(self.hub.log.partition_of(name), name)
        return [found[partition] for partition in range(4)]

    def open(self) -> Database:
        """Open the database once more, as another server does."""
        return Database(f"sqlite:///{self.path}")

    def another_endpoint(self, hub: Hub) -> Endpoint:
        """Return an endpoint elsewhere, as a hub has it after a failover."""
        made = Endpoint(hub)
        self._closing.append(made.server.stop)
        return made

    def point_to(self, endpoint: Endpoint) -> None:
        """Write where the events are."""
        self.events_file.write_text(endpoint.connection_string)

    def upstream(self, handler: Callable[[str, bytes], None]) -> Upstream:
        """Start a server's reader of the hub."""
        database = self.open()
        config = IotHub(name="main", host=self.hub.host, events_file=str(self.events_file))
        needs = Needs(self.fleet.registry, database, self.fleet.told, self.fleet.log)
        made = Upstream(config, needs, TIMES)
        self._started.append(made)
        self._closing.append(database.close)
        made.start(handler)
        return made

    def send(self, device: str, *bodies: bytes) -> None:
        """Have a device send messages."""
        for body in bodies:
            self.hub.send_event(device, "", body, twin.message_properties("presence"))

    def close(self) -> None:
        """Stop whatever was started."""
        for upstream in self._started:
            upstream.stop()
        for close in reversed(self._closing):
            close()
        self.database.close()
