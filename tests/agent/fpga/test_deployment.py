"""A real agentd and gateway with an FPGA that is a kernel-interface fake, and cores in Python."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edgefleet_agent import compose, config
from edgefleet_agent.accelerators.fpga.region import Region
from edgefleet_agent.fabric import stand_in_digest
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Limits, RuntimeNeed, Variant
from tests.agent.gateways import UnixConnection
from tests.agent.world import World, until
from tests.fakes.fpga import mlp
from tests.fakes.fpga.kernel import KernelProcess
from tests.fakes.fpga.onnx_twin import twin
from tests.fakes.fpga.packages import PARENT, X, Y, files_of, fpga_of, golden, python_core
from tests.fakes.memory_transport import MemoryTransport


class Board:
    """A device with an FPGA of two slots, or of none (flat)."""

    def __init__(self, *, slots: int) -> None:
        self.world, self.slots = World(), slots
        self.folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
        self.kernel = KernelProcess(self.folder / "fpga")
        self.identity = self.world.enrolled(self.folder / "state")
        options = self.kernel.options(strategy="overlay", slots=slots, shell=PARENT)
        self.config = msgspec.convert(
            {"state_dir": str(self.folder / "state"), "run_dir": str(self.folder / "run"),
             "fpga": options, "inference": {"tcp": ""}}, config.Config,
        )  # fmt: skip
        self.transport = MemoryTransport()
        self.boot = "1"

    def start(self) -> None:
        """Start agentd, which finds or starts its gateway."""
        desired, self.transport = self.transport.desired, MemoryTransport()
        self.transport.desired = desired
        self.daemon = compose.build(self.config, transport=self.transport)
        self.thread = threading.Thread(target=self.daemon.run, daemon=True)
        self.thread.start()

    def stop(self, *, end_gateway: bool = True) -> None:
        """End agentd, and with it the gateway unless that is to serve on."""
        self.daemon.end(end_gateway=end_gateway)
        self.thread.join(20)
        assert not self.thread.is_alive()

    def publish(self, version: str, seed: int, *, body: int | None = None):
        """Publish a core with its stand-in; `body` is the seed that the hardware really has."""
        files, said = files_of(f"v{seed}", python_core(body or seed), self.slots)
        data, vectors = golden(seed)
        files["golden.safetensors"] = (data, "golden")
        files["model.onnx"] = (twin(seed), "onnx")
        entries = {}
        for path, (content, role) in files.items():
            digest = sha256_digest(content)
            self.world.blobs[digest] = content
            entries[path] = FileEntry(path, digest, len(content), role)
        core = Variant(
            "core", ["*"], "fpga", RuntimeNeed("registers"),
            [entries[p] for p in files if p != "model.onnx"], [X], [Y], Limits(load_s=10),
            golden=vectors, fpga=fpga_of(said, seed), fallback="cpu",
        )  # fmt: skip
        cpu = Variant(
            "cpu", ["*"], "cpu", RuntimeNeed("onnxruntime"),
            [entries["model.onnx"], entries["golden.safetensors"]], [replace(X, shape=[-1, 16])],
            [replace(Y, shape=[-1, 4])], Limits(load_s=10), golden=vectors,
        )  # fmt: skip
        return self.world.publish(version, change=lambda m: replace(m, variants=[core, cpu]))

    def assign(self, slot) -> None:
        """Assign a version."""
        self.transport.send(self.world.assign(self.identity, slot))

    def reaches(self, state: str, version: str):
        """Wait until the report shows a state of a version."""

        def there():
            report = self.transport.slot("digits")
            return report.get("state") == state and report["target_version"] == version and report

        return until(there, f"{state} of {version}: {self.transport.slot('digits')}")

    def codes(self) -> list[str]:
        """Return the codes of all events."""
        return [event["code"] for event in self.transport.items("events")]

    def ask(self) -> tuple[int, list[float]]:
        """Ask once over REST."""
        connection = UnixConnection(self.folder / "run/infer.sock")
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16],
                            "data": QUESTION.ravel().tolist()}]}  # fmt: skip
        connection.request("POST", "/v2/models/digits/infer", json.dumps(body))
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer.get("outputs", [{}])[0].get("data", [])

    def runs_on(self) -> str:
        """Return what answers: `cpu` or `core`, by who holds the window."""
        stats = self.daemon.gateway().stats()
        active = next(s for s in stats if s.role == "active")
        held = Region(self.config.fpga, self.config.state).probe().detail["held"]
        return "core" if active.digest in held.values() else "cpu"

    def answered_by_stand_in(self, slot) -> int:
        """Return how many requests the stand-in of a version has answered."""
        name = stand_in_digest(slot.manifest, "cpu")
        return sum(s.requests for s in self.daemon.gateway().stats() if s.digest == name)

    def close(self) -> None:
        """End everything."""
        if self.thread.is_alive():
            self.stop()
        self.kernel.close()
        self.world.close()
        shutil.rmtree(self.folder, ignore_errors=True)


QUESTION = np.linspace(-3, 5, mlp.INPUTS, dtype=np.float32)[None]


class Clients:
    """Somebody who asks all the time and keeps every answer."""

    def __init__(self, board: Board) -> None:
        self.answers: list[tuple[int, list[float]]] = []
        self._over = threading.Event()
        self._board = board
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._over.is_set():
            self.answers.append(self._board.ask())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def check(self, *seeds: int) -> None:
        """Check that none failed and each is an answer of one of the versions."""
        allowed = [mlp.infer(seed, QUESTION)[0].tolist() for seed in seeds]
        assert self.answers
        assert {status for status, _ in self.answers} == {200}
        assert all(answer in allowed for _, answer in self.answers)


@pytest.fixture
def board(request):
    """A board of so many slots, started."""
    one = Board(slots=getattr(request, "param", 2))
    one.start()
    yield one
    one.close()


def test_two_slots_swap_as_a_processor_does(board):
    """The new core is programmed beside the old one and proved; no request fails, none waits."""
    board.assign(board.publish("1.0.0", 1))
    board.reaches("succeeded", "1.0.0")
    assert board.runs_on() == "core"
    with Clients(board) as clients:
        board.assign(board.publish("2.0.0", 2))
        board.reaches("succeeded", "2.0.0")
        until(lambda: board.ask()[1] == mlp.infer(2, QUESTION)[0].tolist(), "the new core")
    clients.check(1, 2)
    assert "stand_in" not in board.codes()
    until(lambda: board.kernel.windows() == {"core1"}, "the old core is unloaded")
    board.kernel.order(error="write complete error")
    board.assign(board.publish("3.0.0", 3))
    assert board.reaches("failed", "3.0.0")["reason"] == "fpga_program"
    assert board.ask() == (200, mlp.infer(2, QUESTION)[0].tolist())
    assert board.runs_on() == "core"


@pytest.mark.parametrize("board", [1], indirect=True)
def test_a_flat_shell_is_stood_in_for_while_it_is_programmed(board):
    """Without a free slot the processor answers with the same integers, and the core comes back.

    So it is where all goes well, where the core turns out to be another than its package says, and
    where the FPGA refuses: then it is the old core that comes back.
    """
    first = board.publish("1.0.0", 1)
    board.assign(first)
    board.reaches("succeeded", "1.0.0")
    board.kernel.order(delay_s=0.1)
    with Clients(board) as clients:
        board.assign(board.publish("2.0.0", 2))
        board.reaches("succeeded", "2.0.0")
    clients.check(1, 2)
    assert board.answered_by_stand_in(first) > 0
    until(lambda: "stand_in" in board.codes(), "the event")
    assert board.runs_on() == "core"
    board.kernel.order()
    with Clients(board) as clients:
        board.assign(board.publish("3.0.0", 3, body=4))
        assert "BUILD" in board.reaches("failed", "3.0.0")["detail"]
        until(lambda: board.runs_on() == "core", "the old core")
        board.kernel.order(error="write init error")
        board.assign(board.publish("4.0.0", 4))
        assert board.reaches("failed", "4.0.0")["reason"] == "fpga_program"
        board.kernel.order()
        until(lambda: board.runs_on() == "core", "the old core again")
    clients.check(2)


def test_without_an_fpga_the_processor_is_chosen_and_that_is_told():
    """On a plain machine the package's CPU variant serves, and the report says why not the core."""
    board = Board(slots=2)
    board.config = replace(
        board.config,
        fpga=config.FpgaOptions(
            sysfs=str(board.folder / "none"), configfs=str(board.folder / "none"), dfx_mgr="no-such"
        ),
    )
    board.start()
    try:
        board.assign(board.publish("1.0.0", 1))
        report = board.reaches("succeeded", "1.0.0")
        assert report["variant"] == "cpu"
        assert board.ask() == (200, mlp.infer(1, QUESTION)[0].tolist())
        told = json.dumps(board.transport.items("events"))
        assert "fpga is not usable: unavailable: no no-such on PATH" in told
    finally:
        board.close()
