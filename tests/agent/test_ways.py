"""One document, three ways: by the transport, over HTTP, on a USB stick."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgefleet_agent.asking import SLOWEST, Asking
from edgefleet_agent.trust.floors import FloorStore
from edgefleet_shared import access
from edgefleet_shared.errors import UnavailableError
from tests.adversarial.agent_process import AgentProcess
from tests.agent.running import Agent
from tests.agent.world import World, until


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """An enrolled device whose agentd is a process that asks over HTTP after half a second."""
    device = AgentProcess(world)
    with device.toml.open("a") as file:
        file.write("[transport]\nask_s = 0.5\n")
    yield device
    device.close()


def stick(world, folder: Path, document: bytes, *, blobs: bool = True) -> Path:
    """Write what `edgefleet device export-bundle` writes."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    (folder / "desired.json").write_bytes(document)
    for digest, data in world.blobs.items() if blobs else ():
        (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(data)
    return folder


def bring(device, source: Path) -> tuple[int, dict, str]:
    """Run `edgefleet-agent import-bundle`; return status, its JSON and what it complains of."""
    command = [sys.executable, "-m", "edgefleet_agent", "import-bundle", str(source), "--json"]
    done = subprocess.run(
        [*command, "--config", str(device.toml)], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_what_the_broker_does_not_bring_comes_over_http(world, device):
    """A hostile broker withholds everything; the device asks the fleet manager, by its own name."""
    one = world.publish("1.0.0")
    world.server.desired = b'{"v":1}'
    device.start()
    until(lambda: device.report().get("refused") == "malformed", "the refusal")
    world.server.desired = world.assign(device.identity, one)
    device.serves(one)
    until(lambda: device.report()["refused"] == "", "the refusal is over")
    statement = next(a for a in world.server.authorizations if a)
    key, origin = device.identity.signer.public_key, access.origin(world.server.url)
    assert access.check_header(statement, "demo", origin, key, datetime.now(UTC)) == "cam-1"


def test_a_running_agent_takes_a_stick_without_any_network(world, device, tmp_path):
    """Neither broker nor fleet manager nor blobs over HTTP: all comes from the folder, once."""
    one = world.publish("1.0.0")
    source = stick(world, tmp_path / "stick", world.assign(device.identity, one))
    world.server.blobs = {}
    device.start()
    until(device.report, "a first report")
    status, found, _ = bring(device, source)
    assert status == 0
    assert found == {
        "accepted": True, "counter": 1, "blobs": 2, "running": True,
        "bytes": sum(map(len, world.blobs.values())),
    }  # fmt: skip
    device.serves(one)
    until(lambda: not [*(device.state / "inbox").glob("[0-9]*")], "the inbox is empty again")
    assert not world.server.ranges


def test_a_stick_that_came_while_nothing_ran_is_done_at_the_next_start(world, device, tmp_path):
    """It is judged at once and done later; the floors know it already."""
    one = world.publish("1.0.0")
    source = stick(world, tmp_path / "stick", world.assign(device.identity, one))
    world.server.blobs = {}
    status, found, _ = bring(device, source)
    assert (status, found["running"]) == (0, False)
    assert FloorStore(device.state / "trust").current.counter == 1
    device.start()
    device.serves(one)


@pytest.mark.parametrize("running", [True, False], ids=["running", "not running"])
def test_a_stick_is_judged_as_the_network_is(world, device, tmp_path, running):
    """For another device, by a stranger, replayed: refused by the same codes, nothing kept."""
    one = world.publish("1.0.0")
    good = world.assign(device.identity, one)
    if running:
        device.start()
        until(device.report, "a first report")
    status, _, words = bring(device, stick(world, tmp_path / "good", good))
    assert status == 0, words
    attacks = {
        "wrong_device": world.assign(device.identity, one, device="cam-2"),
        "signature": world.assign(device.identity, one, signer="stranger"),
        "replayed": world.assign(device.identity, one, counter=1),
        "malformed": b"[]",
    }
    for code, document in attacks.items():
        status, _, words = bring(device, stick(world, tmp_path / code, document))
        assert status == (2 if code == "malformed" else 1), words
        assert words.count("\n") == 1
    assert FloorStore(device.state / "trust").current.counter == 1
    if running:
        device.serves(one)
        until(lambda: not [*(device.state / "inbox").glob("[0-9]*")], "the inbox is empty again")


def test_a_failing_stick_is_told_before_anything_is_judged(world, device, tmp_path):
    """A blob that is not what its name says, a link out of the folder, no document at all."""
    document = world.assign(device.identity, world.publish("1.0.0"))
    for name in ("flipped", "linked"):
        source = stick(world, tmp_path / name, document)
        blob = next((source / "blobs" / "sha256").iterdir())
        if name == "flipped":
            blob.write_bytes(b"x" + blob.read_bytes()[1:])
        else:
            blob.unlink()
            blob.symlink_to("/dev/zero")
        status, _, words = bring(device, source)
        assert status in {1, 2}
        assert blob.name in words
    status, _, words = bring(device, tmp_path)
    assert status == 2
    assert "desired.json" in words
    assert FloorStore(device.state / "trust").current.counter == 0


def test_a_blob_of_the_stick_that_changed_meanwhile_comes_from_elsewhere(world, device, tmp_path):
    """What lies in the inbox is hashed like everything; else the blob is fetched."""
    one = world.publish("1.0.0")
    status, _, _ = bring(
        device, stick(world, tmp_path / "stick", world.assign(device.identity, one))
    )
    assert status == 0
    for path in device.state.glob("inbox/*/blobs/sha256/*"):
        path.write_bytes(b"x" + path.read_bytes()[1:])
    device.start()
    device.serves(one)
    assert world.server.ranges


def test_a_document_that_a_flood_pushed_out_is_asked_for_again():
    """What was cut is lacking, though the connection stands and nothing else is missing."""
    world = World()
    agent = Agent(world, transport={"ask_s": 0.2})
    try:
        one = world.publish("1.0.0")
        agent.start()
        until(lambda: agent.transport.reported, "a first report")
        world.server.desired = world.assign(agent.identity, one)
        hold = threading.Event()
        agent.daemon._queue.put(lambda: hold.wait(5) and None)
        for _ in range(200):
            agent.transport._events.on_desired(b"{}")
        hold.set()
        agent.reaches("succeeded")
    finally:
        agent.close()
        world.close()


class Clockwork:
    """An `Asking` of a period so short that a test can watch it."""

    def __init__(self, period: float, answer=None) -> None:
        self.asked: list[float] = []
        self.got: list[object] = []
        self.answer = answer
        self.asking = Asking(period, self._fetch, self.got.append, self.got.append)

    def _fetch(self) -> bytes | None:
        self.asked.append(time.monotonic())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def run(self, seconds: float) -> int:
        """Let time go by; return how often it was asked."""
        before, end = len(self.asked), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.005, self.asking.wait_s()))
        return len(self.asked) - before


def test_it_is_asked_while_something_is_lacking_ever_less_often():
    """Nothing lacks, nothing is asked; then at once within a period, and slower from then on."""
    clockwork = Clockwork(0.02, UnavailableError("nobody", code="fleet_manager_unreachable"))
    assert clockwork.run(0.1) == 0
    clockwork.asking.lacking()
    assert 2 <= clockwork.run(0.5) <= 12
    gaps = [b - a for a, b in zip(clockwork.asked, clockwork.asked[1:], strict=False)]
    assert max(gaps) <= 0.02 * SLOWEST + 0.2
    assert gaps[0] < gaps[-1]
    clockwork.asking.satisfied()
    assert clockwork.run(0.3) <= 1
    assert all(isinstance(each, UnavailableError) for each in clockwork.got)


def test_a_period_of_zero_asks_never():
    """Who wants no HTTP gets none."""
    clockwork = Clockwork(0)
    clockwork.asking.lacking()
    assert clockwork.run(0.1) == 0
