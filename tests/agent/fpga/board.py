"""A device with an FPGA: a real agentd and gateway; the kernel's side of the FPGA is a fake."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from edgefleet_agent import compose, config
from edgefleet_agent.accelerators.fpga.region import Region
from edgefleet_agent.stand_in import stand_in_digest
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

    def publish(self, version: str, seed: int, *, body: int | None = None, core=None):
        """Publish a core with its stand-in; `body` is the seed that the hardware really has.

        `core` is the command that simulates it, instead of the one in Python.
        """
        files, said = files_of(f"v{seed}", core or python_core(body or seed), self.slots)
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
