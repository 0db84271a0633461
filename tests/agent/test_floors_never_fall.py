"""Whatever comes, in whatever order, lost caches and wrong clocks between: no floor ever falls."""

from __future__ import annotations

import base64
import json
import random
import shutil

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefleet_shared.errors import EdgeFleetError
from tests.agent.test_acceptance import Device
from tests.agent.world import World
from tests.faults.power_cut import not_below

YEAR_S = 365.25 * 86_400


class Storm:
    """A device, everything that its fleet has ever signed, and an adversary who brings any of it.

    Args:
        folder: The device's disk.
        seed: Of what is chosen among what was signed.
    """

    def __init__(self, folder, seed: int) -> None:
        self.world = World()
        self.device = Device(self.world, folder)
        self.chance = random.Random(seed)
        self.slots = [self.world.publish("1.0.0")]
        self.bundles = [dict(self.world.files)]
        self.envelopes = [self.world.assignment(self.device.identity, *self.slots)]
        self.counter = 1

    def publish(self) -> None:
        """A publisher releases, sometimes raising the security floor."""
        newest = self.slots[-1].release_counter
        floor = self.chance.randint(0, newest + 1)
        self.slots.append(self.world.publish(f"{newest + 1}.0.0", floor=floor))
        self.bundles.append(dict(self.world.files))

    def sign(self) -> None:
        """The director assigns any version that there ever was."""
        self.counter += self.chance.randint(1, 3)
        slot = self.chance.choice(self.slots)
        slot = msgspec.structs.replace(slot, deployment=f"d-{self.counter}")
        self.envelopes.append(
            self.world.assignment(self.device.identity, slot, counter=self.counter)
        )

    def bring(self) -> None:
        """Any envelope comes with any bundle, or with one put together from two."""
        files = dict(self.chance.choice(self.bundles))
        if self.chance.random() < 0.3:
            files["timestamp.json"] = self.chance.choice(self.bundles)["timestamp.json"]
        envelope = self.chance.choice(self.envelopes)
        order = self.envelopes.index(envelope)
        self._accept(envelope, files, self.counters()[order])

    def bring_newest(self) -> None:
        """What the fleet manager would send now."""
        self._accept(self.envelopes[-1], self.bundles[-1], self.counters()[-1])

    def counters(self) -> list[int]:
        """Return the counter of each envelope."""
        return [_counter(envelope) for envelope in self.envelopes]

    def lose_cache(self) -> None:
        """The metadata cache is gone."""
        shutil.rmtree(self.device.state / "trust" / "metadata", ignore_errors=True)

    def restart(self) -> None:
        """Agentd starts anew, with the clock anywhere."""
        self.device.shift = self.chance.choice([0, 0, -50 * YEAR_S, 75 * YEAR_S])
        self.device.wake()

    def _accept(self, envelope: bytes, files: dict[str, bytes], counter: int) -> None:
        try:
            self.device.accept(self.world.desired(envelope, files=files, counter=counter))
        except EdgeFleetError:
            return


def _counter(envelope: bytes) -> int:
    return json.loads(base64.b64decode(json.loads(envelope)["payload"]))["counter"]


STEPS = ("publish", "sign", "bring", "bring_newest", "lose_cache", "restart")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), steps=st.lists(st.sampled_from(STEPS), min_size=4, max_size=16))
def test_no_sequence_of_events_lowers_a_floor(tmp_path_factory, seed, steps):
    """Old and new, mixed and replayed: each floor stays or rises, in memory and on disk."""
    storm = Storm(tmp_path_factory.mktemp("storm"), seed)
    try:
        before = storm.device.floors()
        for step in steps:
            getattr(storm, step)()
            after = storm.device.floors()
            assert not_below(after, before), step
            assert storm.device.acceptance.counter == after.counter
            before = after
    finally:
        storm.world.close()
