"""Cut a device's power before the Nth call that changes its disk, and look at what is left.

`python -m tests.faults.power_cut [FIRST [LAST [STEP]]]` does it for every N and counts them.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared.messages import SlotAssignment
from tests.agent.world import World, until
from tests.faults.device import Device, Witness


def compiler() -> str | None:
    """Return the C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile `crash.c` and return the library."""
    library = folder / "crash.so"
    source = Path(__file__).with_name("crash.c")
    command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True)
    return library


class Course:
    """A device that serves 1.0.0 and is asked for 2.0.0, again and again from the same disk."""

    def __init__(self) -> None:
        self.world = World()
        self.device = Device(self.world)
        self._prepare()
        self.one, self.two = self._serving(), self.world.publish("2.0.0")
        self.before = self.floors()
        shutil.copytree(self.device.state, self.device.folder / "template")
        self.device.assign(self.two)
        (self.device.net / "desired").rename(self.device.folder / "desired")

    def _prepare(self) -> None:
        self._library = build(self.device.folder)

    def _serving(self) -> SlotAssignment:
        device, one = self.device, self.world.publish("1.0.0")
        device.start()
        device.assign(one)
        device.reaches(one.deployment, "succeeded")
        device.cut_power()
        return one

    def floors(self) -> Floors:
        """Return the floors on disk."""
        floors = FloorStore(self.device.state / "trust").current
        assert floors is not None
        return floors

    def _again(self, at: int) -> None:
        """Put the disk back to where 1.0.0 serves and start the update, to be cut at that call."""
        device = self.device
        shutil.rmtree(device.state)
        shutil.copytree(device.folder / "template", device.state)
        shutil.rmtree(device.net)
        device.net.mkdir()
        shutil.copy(device.folder / "desired", device.net / "desired")
        (device.folder / "calls").unlink(missing_ok=True)
        self._start(at)

    def _start(self, at: int) -> None:
        device = self.device
        device.start(
            LD_PRELOAD=str(self._library),
            CRASH_ROOT=str(device.state),
            CRASH_AT=str(at),
            CRASH_LOG=str(device.folder / "calls"),
        )

    def calls(self) -> list[str]:
        """Return the calls of the last run that changed the disk."""
        return (self.device.folder / "calls").read_text().splitlines()

    def whole(self) -> list[str]:
        """Perform the whole update undisturbed, and return its calls."""
        self._again(0)
        self.device.reaches(self.two.deployment, "succeeded")
        self.device.cut_power()
        return self.calls()

    def cut(self, at: int, *, gateway_too: bool) -> bool:
        """Cut at a call, look, start again, look, and let the update end.

        Returns:
            Whether the process got as far as that call.
        """
        device, either = self.device, {self.one.manifest, self.two.manifest}
        self._again(at)
        with Witness(device) as witness:
            hit = self._died()
        self._lose()
        assert witness.seen <= either | {""}  # the gateway is new: it begins with nothing
        left = self.floors()
        assert not_below(left, self.before), (left, self.before)
        if gateway_too:
            device.cut_power()
        empty = set() if device.gateway.routed("digits") else {""}
        (device.net / "desired").unlink()
        with Witness(device) as witness:
            device.start()
            until(lambda: device.gateway.routed("digits") in either, f"a route; {device.tail()}")
            shutil.copy(device.folder / "desired", device.net / "desired")
            device.reaches(self.two.deployment, "succeeded")
            until(lambda: device.gateway.routed("digits") == self.two.manifest, "2.0.0")
        assert witness.seen <= either | empty
        assert device.record().active.digest == self.two.manifest  # type: ignore[union-attr]
        assert not_below(self.floors(), left), (self.floors(), left)
        self._numbers()
        device.cut_power()
        return hit

    def _lose(self) -> None:
        """Lose what a power cut would have lost besides; the library has done it already."""

    def _died(self) -> bool:
        process = self.device.process
        assert process is not None
        found: list[int | None] = []

        def over() -> bool:
            found[:] = [process.poll()]
            record = self.device.record()
            done = record.deployment is not None and record.deployment.state.value == "succeeded"
            return found[0] is not None or (done and record.deployment.id == self.two.deployment)

        until(over, self.device.tail())
        if found[0] is None:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                self.device.kill()
                return False
        assert process.returncode == -signal.SIGKILL, self.device.tail()
        return True

    def _numbers(self) -> None:
        """A number of a stream means one thing, whatever was cut."""
        for stream in ("events", "receipts"):
            found: dict[int, object] = {}
            for batch in self.device.batches(stream):
                for seq, item in zip(batch["seqs"], batch["items"], strict=True):
                    assert found.setdefault(seq, item) == item

    def close(self) -> None:
        """End everything."""
        self.device.close()
        self.world.close()


def not_below(now: Floors, before: Floors) -> bool:
    """Tell whether no floor is lower."""
    return (
        now.counter >= before.counter
        and now.root >= before.root
        and now.timestamp >= before.timestamp
        and now.snapshot >= before.snapshot
        and now.time >= before.time
        and all(now.targets.get(role, 0) >= floor for role, floor in before.targets.items())
        and all(
            now.model(name).release_counter >= floor.release_counter
            and now.model(name).security_floor >= floor.security_floor
            for name, floor in before.models.items()
        )
    )


def main() -> int:
    """Cut at every call, or at those that the command line names."""
    given = [int(argument) for argument in sys.argv[1:4]]
    first, last, step = given + [1, 0, 1][len(given) :]
    course = Course()
    try:
        calls = course.whole()
        hit = 0
        for at in range(first, (last or len(calls)) + 1, step):
            done = course.cut(at, gateway_too=bool(at % 2))
            hit += done
            print(at, "cut" if done else "never came", course.calls()[-1], flush=True)
        print(f"{len(calls)} calls; the power was cut at {hit} of them")
    finally:
        course.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
