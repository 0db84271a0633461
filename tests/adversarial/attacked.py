"""A device under attack: it serves 1.0.0, and whatever it refuses must leave it as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgefleet_agent.refusals import Refusals
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared import dsse
from edgefleet_shared.messages import BATCH_TYPE, SlotAssignment
from tests.agent.running import Agent
from tests.agent.world import World, until
from tests.faults.power_cut import not_below

LOADING = {"Prove", "Load", "Flip", "Unroute"}


class Attacked:
    """agentd in this process over a gateway that loads nothing, and the cloud's keys at hand.

    Attributes:
        one: What it serves.
        agent: The running agentd.
    """

    def __init__(self, world: World, **options: Any) -> None:
        self.world, self.agent = world, Agent(world, **options)
        self.agent.start()
        self.one = world.publish("1.0.0")
        self.agent.assign(self.one)
        self.agent.reaches("succeeded")
        until(self._calm, "a device at rest")

    @property
    def state(self) -> Path:
        """The device's disk."""
        return self.agent.config.state

    @property
    def identity(self) -> Any:
        """Who it is."""
        return self.agent.identity

    def floors(self) -> Floors:
        """Return the floors on disk."""
        floors = FloorStore(self.state / "trust").current
        assert floors is not None
        return floors

    def refuses(self, payload: bytes, code: str) -> None:
        """Send a document and check that the refusal changes nothing but one counted event."""
        receiver = self.agent.daemon._receiver
        assert isinstance(receiver._refusals, Refusals)
        receiver._refusals = Refusals()  # a burst is told in part; here each one counts
        until(self._tidy, "what the deployment before has left to go")
        before, floors, told = self._unchanging(), self.floors(), len(self._events())
        loads = self._loads()
        self.agent.transport.send(payload)
        until(lambda: len(self._events()) > told, f"event {code}; {self._codes()}")
        events = self._events()[told:]
        assert [event["code"] for event in events] == [code]
        assert events[0]["step"] == "receive"
        until(lambda: self.agent.transport.reported[-1]["refused"] == code, "the report says it")
        assert self._unchanging() == before
        assert not_below(self.floors(), floors)
        assert self.floors().counter == floors.counter
        assert self._loads() == loads

    def takes(self, payload: bytes) -> None:
        """Send an honest document and wait until all of it is settled."""
        counter = json.loads(payload)["counter"]
        self.agent.transport.send(payload)
        until(lambda: self.agent.transport.reported[-1]["counter"] == counter, "it is accepted")
        until(lambda: self._calm() and self._floor() == counter, "a device at rest")

    def _floor(self) -> int:
        return self.floors().counter

    def serves_on(self, slot: SlotAssignment | None = None) -> None:
        """Check that an honest assignment is taken after all, so that nothing was poisoned."""
        slot = slot or self.world.publish(f"{self.world.counter + 100}.0.0")
        self.agent.assign(slot)
        until(lambda: self.agent.gateway.routed(slot.model) == slot.manifest, "the honest version")
        self.agent.reaches("succeeded", slot=slot.model)

    def _unchanging(self) -> tuple[Any, ...]:
        accepted = self.state / "desired" / "accepted.json"
        journal = self.agent.record()
        gateway = self.agent.gateway
        return (
            accepted.read_bytes(), journal.active, journal.previous, journal.deployment,
            self._blobs(), gateway.loaded(), gateway.routed("digits"),
        )  # fmt: skip

    def _blobs(self) -> list[str]:
        return sorted(path.name for path in (self.state / "store").rglob("*") if path.is_file())

    def _tidy(self) -> bool:
        """Tell whether the store has nothing but what the journal needs; collecting comes last."""
        needs = self.agent.daemon._parts.tools.journal.needs()
        return {f"sha256:{name}" for name in self._blobs()} <= needs

    def _calm(self) -> bool:
        record = self.agent.record()
        return record.deployment is not None and record.deployment.state.value == "succeeded"

    def _loads(self) -> int:
        return sum(name in LOADING for name in self.agent.gateway.seen)

    def _events(self) -> list[dict[str, Any]]:
        """Return what it told, in order, having checked the device's signature on all of it."""
        key = self.identity.signer.public_key
        for sealed in self.agent.transport.sealed:
            if BATCH_TYPE.encode() in sealed:
                dsse.open_sealed(sealed, BATCH_TYPE, key)
        return [e for e in self.agent.transport.items("events") if e["step"] == "receive"]

    def _codes(self) -> list[str]:
        return [event["code"] for event in self.agent.transport.items("events")]

    def close(self) -> None:
        """End it."""
        self.agent.close()
