"""The power goes while a stick is imported: the same command, run again, mends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from edgefleet_agent.trust.floors import FloorStore
from tests.adversarial.agent_process import AgentProcess
from tests.agent.test_ways import stick
from tests.agent.world import World
from tests.faults.power_cut import build, compiler

EVERY = 13
"""Of some fifty calls that change the disk; all of them were cut by hand, with the same end."""


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """An enrolled device on which nothing runs."""
    device = AgentProcess(world)
    yield device
    device.close()


class Importer:
    """Runs `edgefleet-agent import-bundle` and cuts the power before its Nth call."""

    def __init__(self, device: AgentProcess, source: str) -> None:
        self.device, self.source = device, source
        self.library, self.log = build(device.folder), device.folder / "calls"

    def run(self, at: int = 0) -> int:
        """Return the exit status; at 0 nothing is cut."""
        self.log.unlink(missing_ok=True)
        environ = {
            "LD_PRELOAD": str(self.library), "CRASH_ROOT": str(self.device.state),
            "CRASH_AT": str(at), "CRASH_LOG": str(self.log), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        argv = [sys.executable, "-m", "edgefleet_agent", "import-bundle", self.source,
                "--config", str(self.device.toml)]  # fmt: skip
        done = subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, check=False)
        return done.returncode


@pytest.mark.skipif(compiler() is None, reason="needs a C compiler for the fault injection")
def test_a_cut_import_leaves_a_whole_entry_or_none(world, device):
    """Cut at any call, the inbox holds no half; run again, it is accepted, and then it serves."""
    one = world.publish("1.0.0")
    document = world.assign(device.identity, one)
    source = stick(world, device.folder / "stick", document)
    importer = Importer(device, str(source))
    shutil.copytree(device.state, device.folder / "template")
    assert importer.run() == 0
    calls = len(importer.log.read_text().splitlines())
    for at in range(1, calls + 1, EVERY):
        shutil.rmtree(device.state)
        shutil.copytree(device.folder / "template", device.state)
        assert importer.run(at) == -signal.SIGKILL
        for entry in device.state.glob("inbox/[0-9]*"):
            assert (entry / "desired.json").read_bytes() == document
            assert len(list(entry.glob("blobs/sha256/*"))) == len(world.blobs)
        assert importer.run() == 0
        assert FloorStore(device.state / "trust").current.counter == 1
        assert not list(device.state.glob("inbox/.incoming-*"))
    world.server.blobs = {}
    device.start()
    device.serves(one)
