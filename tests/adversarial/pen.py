"""Mutants judged by what a worker does, many in one process, as fast as may be.

`python -m tests.adversarial.pen onnx|tflite [COUNT [FIRST]]` prints how each kind ended. Processes
are forked from this one, which has imported the runtime and has one thread, as the zygote's are;
each shuts itself in as a proving worker does and then judges one mutant after the other. If it
dies, the mutant at hand was its last, and another process goes on with the next.

Each is judged twice. With the digest that was signed: nothing but the untouched bytes may pass. And
as if the mutant itself had been signed: lint, limits, sandbox and golden vectors must hold alone.
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.worker import compose, environment, opening, sandbox
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Limits
from tests.adversarial.breeding import PARENTS, breed
from tests.models import Package, golden_bytes, package
from tests.tflite_models import weights

BATCH = 50
WIDTH = len(os.sched_getaffinity(0))
LIMITS = Limits(memory_mb=512, load_s=5)
GRACE_S = 20.0
"""How long one mutant may take on a machine that does other things too; no limit ends it sooner."""


class Verdict(msgspec.Struct, frozen=True):
    """How one mutant ended.

    Attributes:
        seed: Which one.
        digest: The code by which its bytes were refused, '' if they were not.
        code: How it ended as if it had been signed; `proved` if it may serve.
        agrees: Whether what it answers is what numpy computes; asked of what was proved alone.
        same: Whether it is the parent, byte for byte.
    """

    seed: int
    digest: str
    code: str
    agrees: bool
    same: bool
    message: str = ""


def reference() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the golden input, and the answer as numpy computes it."""
    w, x = weights(0), np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    scores = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    return {"x": x}, {"label": scores.argmax(1), "scores": scores}


def parent(folder: Path, form: str) -> Package:
    """Return the package of the untouched model, with golden vectors."""
    golden = golden_bytes([reference()])
    return package(folder, PARENTS[form](), golden=golden, cases=1, limits=LIMITS)


class _Process:
    """A forked process, and what of its batch it has not judged yet."""

    def __init__(self, pid: int, pipe: Any, batch: list[int]) -> None:
        self.pid, self.pipe, self.batch = pid, pipe, batch
        self.first: Verdict | None = None
        self.since = time.monotonic()

    def heard(self, verdict: Verdict) -> list[Verdict]:
        """Take what it says: of each mutant first what the digest made of it, then the rest."""
        self.since = time.monotonic()
        self.first = None if verdict.code else verdict
        if not verdict.code:
            return []
        self.batch = self.batch[1:]
        return [verdict]

    def bury(self) -> list[Verdict]:
        """Return the verdict of the mutant that ended it, if one did."""
        self.pipe.close()
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        if not self.batch:
            return []
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        codes = {int(signal.SIGKILL): "load_timeout", int(signal.SIGSYS): "sandbox_violation"}
        name = signal.Signals(ended).name if ended else f"exit {os.WEXITSTATUS(status)}"
        first = self.first or Verdict(self.batch[0], "died", "", False, False)
        return [msgspec.structs.replace(first, code=codes.get(ended, "crashed"), message=name)]


class Pen:
    """Judges mutants of one format."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form
        self.parent = parent(folder, form)
        self.data = PARENTS[form]()
        compose.runtime(self.parent.spec.runtime)
        compose.accelerator("cpu")
        self.deaths = 0

    def judge(self, seeds: range) -> list[Verdict]:
        """Return a verdict for every seed, in order."""
        batches = [list(seeds[at : at + BATCH]) for at in range(0, len(seeds), BATCH)]
        found: list[Verdict] = []
        with selectors.DefaultSelector() as selector:
            running: dict[Any, _Process] = {}
            while batches or running:
                while batches and len(running) < WIDTH:
                    process = self._fork(batches.pop())
                    selector.register(process.pipe, selectors.EVENT_READ)
                    running[process.pipe] = process
                ready = {key.fileobj for key, _ in selector.select(1.0)}
                for pipe, process in list(running.items()):
                    line = pipe.readline() if pipe in ready else b""
                    if line:
                        found += process.heard(msgspec.json.decode(line, type=Verdict))
                    elif pipe in ready or time.monotonic() - process.since > GRACE_S:
                        selector.unregister(pipe)
                        del running[pipe]
                        found += process.bury()
                        self.deaths += bool(process.batch)
                        if rest := process.batch[1:]:
                            batches.append(rest)
        return sorted(found, key=lambda verdict: verdict.seed)

    def _fork(self, batch: list[int]) -> _Process:
        assert len(list(Path("/proc/self/task").iterdir())) == 1  # else a lock may stay locked
        reader, writer = os.pipe()
        files = [self._open(seed) for seed in batch]
        pid = os.fork()
        if pid:
            os.close(writer)
            for fd, *rest in files:
                for one in [fd, *rest]:
                    os.close(one)
            return _Process(pid, os.fdopen(reader, "rb", buffering=0), batch)
        try:
            os.close(reader)
            for verdict in self._judge_all(batch, files):
                os.write(writer, msgspec.json.encode(verdict) + b"\n")
        except BaseException:  # noqa: BLE001 - a fork must never run its parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _open(self, seed: int) -> list[int]:
        """Return descriptors of a mutant's package; its file has no name any more."""
        path = self.folder / f"mutant-{seed}"
        path.write_bytes(breed(self.form, seed))
        model = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()
        return [model, *(os.open(p, os.O_RDONLY | os.O_CLOEXEC) for p in self.parent.paths[1:])]

    def _judge_all(self, batch: list[int], files: list[list[int]]) -> Iterator[Verdict]:
        """Shut this process in, and judge; runs in the forked process."""
        order = Order(self.parent.spec, prove=True, threads=1, parent=os.getppid())
        every = [fd for one in files for fd in one]
        sandbox.give_up_rights(len(every), order.spec)
        longer = msgspec.structs.replace(LIMITS, load_s=BATCH * LIMITS.load_s)  # for all of them
        spec = msgspec.structs.replace(order.spec, limits=longer)
        sandbox.limit(msgspec.structs.replace(order, spec=spec))
        sandbox.confine(every, order.spec, fatal=True)
        for seed, fds in zip(batch, files, strict=True):
            data = os.pread(fds[0], 2**24, 0)
            checked = opening.open_model(msgspec.structs.replace(order, again=True), fds).report
            first = Verdict(seed, checked.code, "", False, data == self.data)
            yield first
            yield self._judge(first, data, order, fds)

    def _judge(self, first: Verdict, data: bytes, order: Order, fds: list[int]) -> Verdict:
        """Judge a mutant as if it had been signed."""
        entry, *rest = self.parent.spec.files
        own = FileEntry(entry.path, sha256_digest(data), len(data), entry.role)
        spec = msgspec.structs.replace(self.parent.spec, files=[own, *rest])
        opened = opening.open_model(msgspec.structs.replace(order, spec=spec, again=True), fds)
        report, agrees = opened.report, False
        if opened.session is not None:
            inputs, wanted = reference()
            answer = opened.session.run(inputs)
            agrees = all(
                np.allclose(answer[name], want, rtol=1e-3, atol=1e-4)
                for name, want in wanted.items()
            )
        code = "proved" if report.ok else report.code
        return msgspec.structs.replace(
            first, code=code, agrees=agrees, message=report.message[:200]
        )


def judge(form: str, seeds: range) -> dict[str, Any]:
    """Return counts of how the mutants of a format ended, and what must not be."""
    with tempfile.TemporaryDirectory() as folder:
        pen, begun = Pen(Path(folder), form), time.monotonic()
        found = pen.judge(seeds)
    wrong = [
        one
        for one in found
        if one.digest != ("" if one.same else "blob_corrupt")
        or (one.code == "proved" and not one.agrees)
    ]
    kinds = collections.Counter(one.code for one in found)
    return {
        "format": form, "mutants": len(found), "seconds": round(time.monotonic() - begun, 1),
        "untouched": sum(one.same for one in found),
        "refused_by_digest": sum(one.digest == "blob_corrupt" for one in found),
        "as_if_signed": dict(sorted(kinds.items())), "processes_lost": pen.deaths,
        "wrong": [msgspec.structs.asdict(one) for one in wrong],
        "lost": [f"seed {one.seed}: {one.code}, {one.message}" for one in found
                 if one.code in {"crashed", "sandbox_violation", "load_timeout"}],
    }  # fmt: skip


def main() -> int:
    """Judge as many as the command line says."""
    wanted = {**os.environ, **environment.VARIABLES}
    if wanted != dict(os.environ):  # they must stand before the first import
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], wanted)
    form = sys.argv[1]
    given = [int(argument) for argument in sys.argv[2:4]]
    count, first = given + [4000, 0][len(given) :]
    found = judge(form, range(first, first + count))
    print(json.dumps(found))
    return 0 if not found["wrong"] and found["mutants"] == count else 1


if __name__ == "__main__":
    sys.exit(main())
