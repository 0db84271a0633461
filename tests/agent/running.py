"""agentd inside the test's process: real but for the transport and, mostly, the gateway."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import compose, config
from edgefleet_agent.journal import Document, SlotRecord
from edgefleet_agent.ports import Clock
from edgefleet_shared import strict_json
from tests.agent.world import World, until
from tests.fakes.fake_gateway import FakeGateway
from tests.fakes.memory_transport import MemoryTransport


class Agent:
    """One device of a world.

    Args:
        world: Its fleet.
        clock: Gives the device's time.
        options: Tables of `config.Config`, for example `store={"max_bytes": 1000}`.
    """

    def __init__(self, world: World, clock: Clock = time.time, **options: Any) -> None:
        self.world, self.clock = world, clock
        self.folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
        self.run_dir = self.folder / "run"
        self.run_dir.mkdir()
        self.identity = world.enrolled(self.folder / "state")
        self.config = msgspec.convert(
            {"state_dir": str(self.folder / "state"), "run_dir": str(self.run_dir), **options},
            config.Config,
        )
        self.gateway = FakeGateway(self.run_dir)
        self.transport = MemoryTransport()
        self._thread: threading.Thread | None = None
        self.daemon: Any = None

    def start(self) -> Agent:
        """Start agentd with a fresh transport that keeps the retained document."""
        desired = self.transport.desired
        self.transport = MemoryTransport()
        self.transport.desired = desired
        self.daemon = compose.build(
            self.config, transport=self.transport, clock=self.clock,
            gateway_command=["/bin/false"], environ={},
        )  # fmt: skip
        self._thread = threading.Thread(target=self.daemon.run, daemon=True)
        self._thread.start()
        return self

    def stop(self, *, end_gateway: bool = True) -> None:
        """End agentd, and with it the gateway unless that is to serve on."""
        if self._thread is not None:
            self.daemon.end(end_gateway=end_gateway)
            self._thread.join(20)
            assert not self._thread.is_alive()
            self._thread = None

    def new_gateway(self) -> FakeGateway:
        """Put a gateway that knows nothing in the place of one that is gone."""
        self.gateway = FakeGateway(self.run_dir)
        return self.gateway

    def close(self) -> None:
        """End everything and remove the folder."""
        self.stop()
        self.gateway.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def assign(self, *slots: Any, **fields: Any) -> None:
        """Send an assignment."""
        self.transport.send(self.world.assign(self.identity, *slots, **fields))

    def record(self, slot: str = "digits") -> SlotRecord:
        """Return the slot's record as it is on disk."""
        data = (self.config.state / "journal.json").read_bytes()
        document = strict_json.decode(data, Document, max_bytes=len(data), what="journal")
        return document.slots.get(slot, SlotRecord())

    def reaches(self, *states: str, slot: str = "digits") -> dict[str, Any]:
        """Wait until a report shows one of the states, and return it."""
        return until(
            lambda: (r := self.transport.slot(slot)).get("state") in states and r,
            f"{states}; last report {self.transport.slot(slot)}",
        )

    def event(self, code: str) -> dict[str, Any]:
        """Wait for an event with that code, and return it."""
        return until(
            lambda: next((e for e in self.transport.items("events") if e["code"] == code), None),
            f"event {code}; {[e['code'] for e in self.transport.items('events')]}",
        )
