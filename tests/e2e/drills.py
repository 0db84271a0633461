"""A fleet whose keys are rotated by the commands of docs/trust.md, typed as they stand there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgefleet_provisioning.demo.fleet import Fleet
from tests.e2e.world import World, until
from tests.house.documents import FENCE, text_of
from tests.models import linear

ON, OFF = "cam-1", "cam-2"
"""The device that is online while keys are rotated, and the one that is switched off."""
SECONDS = 90.0


def typed(section: str) -> list[str]:
    """Return the command lines of a section of docs/trust.md, in order."""
    text = text_of("docs/trust.md").split(f"\n### {section}\n")[1]
    text = text.split("\n### ")[0].split("\n## ")[0]
    fences = [body for kind, body in FENCE.findall(text) if kind == "sh"]
    return [line for body in fences for line in body.replace("\\\n", " ").splitlines() if line]


class Drill:
    """The fleet, and an operator at a shell in a folder of their own."""

    def __init__(self, fleet: Fleet, desk: Path) -> None:
        self.fleet, self.desk = fleet, desk
        self.world = World(fleet, None)  # type: ignore[arg-type]  # these models are no digits
        self.desk.mkdir()

    def type(self, line: str) -> str:
        """Run one line in a shell, answering yes if asked, and return what it printed."""
        bin_folder = str(Path(sys.executable).parent)
        finished = subprocess.run(
            ["sh", "-c", line], cwd=self.desk, input="y\n", text=True, capture_output=True,
            timeout=60, check=False,
            env={**os.environ, "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]])},
        )  # fmt: skip
        assert finished.returncode == 0, f"{line}\n{finished.stdout}{finished.stderr}"
        return finished.stdout

    def follow(self, section: str) -> str:
        """Type a section of the page; return what its last line printed."""
        return [self.type(line) for line in typed(section)][-1]

    def publish(self, version: str) -> None:
        """Publish one more version."""
        path = self.fleet.folder / f"{version}.onnx"
        path.write_bytes(linear(float(version.partition(".")[0])))
        self.fleet.publish(version, path)

    def switch_off(self) -> None:
        """Stop one device's agent."""
        self.fleet.processes.end(OFF)

    def switch_on(self) -> None:
        """Start it again."""
        self.world.restart_agent(OFF)

    def floors(self, name: str) -> dict[str, Any]:
        """Return the newest floors on a device's disk."""
        folder = self.fleet.folder / name / "state" / "trust"
        slots = [json.loads(path.read_bytes()) for path in folder.glob("floors-?.json")]
        return max(slots, key=lambda slot: slot["generation"])["floors"]

    def reaches(self, name: str, *, root: int = 0, targets: int = 0, counter: int = 0) -> None:
        """Wait until a device has seen these versions and accepted this counter."""
        until(
            f"root {root}, targets {targets} and counter {counter} on {name}",
            lambda: (
                (f := self.floors(name))["root"] >= root
                and f["targets"].get("targets", 0) >= targets
                and f["counter"] >= counter
            ),
            SECONDS,
        )

    def runs(self, version: str) -> None:
        """Roll a version out to both devices; it must arrive."""
        done = self.world.roll_out(version, seconds=SECONDS)
        assert done["state"] == "completed", done


def start(folder: Path, fleet: Fleet) -> Drill:
    """Make the fleet, start it, and bring version 1.0.0 to both devices."""
    fleet.init()
    fleet.start_cloud()
    fleet.start_agents()
    drill = Drill(fleet, folder / "desk")
    drill.publish("1.0.0")
    drill.publish("2.0.0")
    drill.runs("1.0.0")
    return drill
