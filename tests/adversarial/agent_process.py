"""A real agentd that serves a version and is attacked by what its network brings."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from edgefleet_agent import durable
from edgefleet_agent.trust.floors import SLOTS, Floors, FloorStore
from edgefleet_shared import dsse
from edgefleet_shared.messages import BATCH_TYPE, SlotAssignment
from tests.agent.world import World, until
from tests.fakes.memory_transport import opened
from tests.faults.device import Device
from tests.faults.power_cut import not_below


class AgentProcess(Device):
    """A device of a world, and what must hold whenever it refuses."""

    def send(self, document: bytes) -> None:
        """Put a desired document into the network."""
        durable.atomic_write(self.net / "desired", document)

    def serves(self, slot: SlotAssignment) -> None:
        """Wait until the route names a slot's version and its deployment is over."""
        self.reaches(slot.deployment, "succeeded", "already_current")
        until(lambda: self.gateway.routed(slot.model) == slot.manifest, "the route")

    def takes(self, document: bytes) -> None:
        """Send a document and wait until it is accepted."""
        self.send(document)
        counter = json.loads(document)["counter"]
        until(lambda: self.report().get("counter") == counter, f"{counter}; {self.report()}")
        assert not self.report()["refused"]

    def refuses(self, document: bytes, code: str) -> None:
        """Send a document; it is refused by that code, told signed, and changes nothing else."""
        before, routes, told = self.floors(), self.routes(), len(self.events(code))
        kept = durable.read_bytes(self.state / "desired" / "accepted.json")
        self.send(document)
        until(lambda: len(self.events(code)) > told, f"{code}; {self.report()}; {self.tail()}")
        until(lambda: self.report().get("refused") == code, f"{code}; {self.report()}")
        assert durable.read_bytes(self.state / "desired" / "accepted.json") == kept
        assert self.routes() == routes
        assert self.floors().counter == before.counter
        assert not_below(self.floors(), before)

    def routes(self) -> dict[str, str]:
        """Return the digest that each model's route names, '' for none."""
        return {model: self.gateway.routed(model) for model in self.world.publishers}

    def restart(self, **environ: str) -> None:
        """Kill agentd and start it again."""
        self.kill()
        self.start(**environ)

    def power_cut_at_year(self, year: int) -> None:
        """Cut the power; the clock comes back in that year."""
        self.cut_power()
        self.start(CLOCK_SHIFT_S=str((year - 2026) * 365.25 * 86_400))

    def floors(self) -> Floors:
        """Return the floors on disk, all zero if both files are lost."""
        # A copy: whoever opens the files sweeps away what agentd is just writing.
        with tempfile.TemporaryDirectory() as folder:
            for name in SLOTS:
                if data := durable.read_bytes(self.state / "trust" / name):
                    (Path(folder) / name).write_bytes(data)
            return FloorStore(Path(folder)).current or Floors()

    def report(self) -> dict[str, Any]:
        """Return the newest reported document, {} before the first."""
        sealed = durable.read_bytes(self.net / "reported")
        return opened(sealed) if sealed else {}

    def events(self, code: str) -> list[dict[str, Any]]:
        """Return every event with that code; each batch must bear the device's signature."""
        found = []
        for file in sorted((self.net / "batches").glob("*-events")):
            sealed = file.read_bytes()
            key = self.identity.signer.public_key
            body = json.loads(dsse.open_sealed(sealed, BATCH_TYPE, key))
            found += [item for item in body["items"] if item["code"] == code]
        return found


def serving(world: World, version: str = "1.0.0") -> AgentProcess:
    """Return a victim that serves a version, published now."""
    victim = AgentProcess(world)
    victim.start()
    slot = world.publish(version)
    victim.takes(world.assign(victim.identity, slot))
    victim.serves(slot)
    victim.slot = slot
    return victim
