"""agentd inside the test's process: real but for the transport and, mostly, the gateway."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import compose, config
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.ipc import control
from edgefleet_agent.journal import Document, SlotRecord
from edgefleet_agent.ports import Clock
from edgefleet_shared import strict_json
from tests.agent.gateways import UnixConnection, fp32
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


class WholeAgent(Agent):
    """agentd in this process with a gateway process of its own and real workers."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world, **options)
        self.gateway.close()
        self._gateways: list[Any] = []

    def start(self) -> WholeAgent:
        """Start agentd, which finds or starts its gateway."""
        desired = self.transport.desired
        self.transport = MemoryTransport()
        self.transport.desired = desired
        self.daemon = compose.build(self.config, transport=self.transport)
        self._thread = threading.Thread(target=self.daemon.run, daemon=True)
        self._thread.start()
        return self

    def stop(self, *, end_gateway: bool = True) -> None:
        """End agentd, and with it the gateway unless that is to serve on."""
        if self.daemon is not None:
            self._gateways.append(self.daemon._link._child)
        super().stop(end_gateway=end_gateway)

    def close(self) -> None:
        """End everything and remove the folder."""
        self.stop()
        for process in filter(None, self._gateways):
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def state(self) -> control.GatewayState:
        """Return what the gateway runs, asked of it directly, agentd running or not."""
        client = GatewayClient(self.run_dir / "control.sock", lambda _: None)
        try:
            return client.state
        finally:
            client.close()
            client._reader.join(5)

    def infer(self, values: list[float]) -> tuple[int, dict[str, Any]]:
        """Ask the model; return status and decoded answer, 0 while no gateway is there."""
        connection = UnixConnection(self.run_dir / "infer.sock")
        body = json.dumps(fp32("x", values, [1, len(values)]))
        with contextlib.closing(connection):
            try:
                connection.request("POST", "/v2/models/digits/infer", body)
                response = connection.getresponse()
            except OSError:
                return 0, {}
            return response.status, json.loads(response.read())

    def crash(self, number: int = signal.SIGSEGV) -> None:
        """Have the worker that answers die of a signal, and wait until its death is known."""
        (pid,) = [worker.pid for worker in self.state().workers if worker.role == "active"]
        os.kill(pid, number)
        until(lambda: pid not in [worker.pid for worker in self.state().workers], "a noticed death")
