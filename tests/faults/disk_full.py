"""Fill a device's disk at the Nth call that needs room, and look at what it does.

`python -m tests.faults.disk_full [FIRST [LAST [STEP]]]` does it for every N and counts them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_shared.identifiers import new_id
from tests.agent.world import World, until
from tests.faults.device import Device, Witness
from tests.faults.power_cut import compiler

ENDS = ("succeeded", "failed", "rejected")


def build(folder: Path) -> Path:
    """Compile `full.c` and return the library."""
    library, source = folder / "full.so", Path(__file__).with_name("full.c")
    command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", library, source]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


class Course:
    """A device that serves 1.0.0 and is asked for 2.0.0, again and again from the same disk."""

    def __init__(self) -> None:
        self.world = World()
        self.device = Device(self.world)
        self.library = build(self.device.folder)
        self.one = self.world.publish("1.0.0")
        self.device.start()
        self.device.assign(self.one)
        self.device.reaches(self.one.deployment, "succeeded")
        self.device.cut_power()
        self.two = self.world.publish("2.0.0", body=b"weights " * 40_000)
        shutil.copytree(self.device.state, self.device.folder / "template")
        self.counter = self.world.counter

    def _again(self, at: int, root: str) -> None:
        """Put the disk back to where 1.0.0 serves, start agentd, and wait until it serves."""
        device = self.device
        for path in (device.state, device.net):
            shutil.rmtree(path)
        shutil.copytree(device.folder / "template", device.state)
        device.net.mkdir()
        for name in ("arm", "free", "calls"):
            (device.folder / name).unlink(missing_ok=True)
        self.world.counter = self.counter
        device.start(
            LD_PRELOAD=str(self.library),
            FULL_ROOT=str(device.state / root),
            FULL_AT=str(at),
            **{f"FULL_{n.upper()}": str(device.folder / n) for n in ("arm", "free")},
            FULL_LOG=str(device.folder / "calls"),
        )
        until(lambda: device.gateway.routed("digits") == self.one.manifest, device.tail())

    def calls(self) -> list[str]:
        """Return the calls of the last run that needed room, ` FULL` where they got none."""
        path = self.device.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, at: int, full_s: float = 0.4, root: str = "", told: str = "") -> dict[str, Any]:
        """Let the disk be full from a call on, for a while; return what came of it.

        Args:
            at: The call, from 1; 0: never.
            full_s: Seconds until there is room again.
            root: Only this folder of the state folder is full.
            told: An event that must reach the fleet manager before the power is cut at the end.

        Asserts that something served all the time, that agentd lived, that nothing half done is
        left, and that the version can be had once there is room.
        """
        device, two = self.device, msgspec.structs.replace(self.two, deployment=new_id())
        self._again(at, root)
        with Witness(device) as witness:
            (device.folder / "arm").touch()
            device.assign(two)
            hit = at and self._wait_full(two, full_s)
            (device.folder / "free").touch()
            device.reaches(two.deployment, *ENDS)
            first = device.record().deployment
            assert first is not None
            alive = device.process is not None and device.process.poll() is None
            assert alive, device.tail()
            until(lambda: not told or told in self.codes(), f"{told}; {self.codes()}", 30)
            self._clean()
            self._retry(first.state.value)
        assert witness.seen <= {self.one.manifest, self.two.manifest}, witness.seen
        device.cut_power()
        return {"hit": bool(hit), "state": first.state.value, "reason": first.reason}

    def codes(self) -> set[str]:
        """Return the codes of the events that have reached the fleet manager."""
        return {item["code"] for batch in self.device.batches("events") for item in batch["items"]}

    def _wait_full(self, two: Any, full_s: float) -> bool:
        """Wait until a call was refused, and a while more; or until all is done without."""

        def over() -> bool:
            record = self.device.record().deployment
            done = record is not None and record.id == two.deployment
            ended = done and record.state.value in ENDS
            return any(call.endswith(" FULL") for call in self.calls()) or ended

        until(over, self.device.tail())
        hit = any(call.endswith(" FULL") for call in self.calls())
        if hit:
            time.sleep(full_s)
        return hit

    def _clean(self) -> None:
        """No partial download and no temporary file is left behind, once all is quiet."""
        state = self.device.state

        def left() -> list[str]:
            partial = [p.name for p in (state / "store" / "partial").iterdir()]
            return partial + [p.name for p in state.rglob("*.tmp*") if p.is_file()]

        until(lambda: not left(), f"a clean folder; {left()}")

    def _retry(self, state: str) -> None:
        """Where the deployment failed, a new one must succeed now."""
        if state == "succeeded":
            return
        two = msgspec.structs.replace(self.two, deployment=new_id())
        self.device.assign(two)
        self.device.reaches(two.deployment, "succeeded")

    def close(self) -> None:
        """End everything."""
        self.device.close()
        self.world.close()


def main() -> int:
    """Fill the disk at every call, or at those that the command line names."""
    given = [int(argument) for argument in sys.argv[1:4]]
    first, last, step = given + [1, 0, 1][len(given) :]
    course, hits = Course(), 0
    try:
        course.run(0)
        calls = course.calls()
        print(f"{len(calls)} calls", flush=True)
        for at in range(first, (last or len(calls)) + 1, step):
            found = course.run(at)
            hits += found["hit"]
            full = next((call for call in course.calls() if call.endswith(" FULL")), "-")
            print(at, found, full, flush=True)
        print(f"{len(calls)} calls need room; the disk was full at {hits} of them")
    finally:
        course.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
