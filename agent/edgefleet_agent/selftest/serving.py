"""A runtime on an accelerator: prove, load, ask, swap under load, release, and what that took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgefleet_agent.ipc.control import ModelSpec, Outcome, missing_layers
from edgefleet_agent.selftest import models
from edgefleet_agent.selftest.bench import Application, Bench
from edgefleet_agent.selftest.models import TinyModel
from edgefleet_agent.selftest.report import Row, State
from edgefleet_shared.errors import UnavailableError

ASKED: Final = 300
SWAPS: Final = 10
CLIENTS: Final = 2
LEFT_OVER_KB: Final = 8192
"""More than this, still held after a release, is memory that does not come back."""
SETTLE_S: Final = 15.0
"""A worker drains for at most ten seconds before it is ended."""
NOT_HERE: Final = frozenset({"unsupported_runtime", "unsupported_accelerator"})


Place = Callable[[ModelSpec], ModelSpec]
"""Decides on which execution providers of this device a model runs, as agentd does."""


def try_all(bench: Bench, folder: Path, kinds: list[str], place: Place) -> Iterator[Row]:
    """Yield the rows of each runtime with a built-in model, on each kind of accelerator.

    Args:
        bench: A gateway.
        folder: Where models may be copied.
        kinds: Accelerators that are usable here.
        place: Chooses their execution providers.
    """
    for runtime in models.FILES:
        for kind in kinds:
            yield from _Pair(bench, folder, runtime, kind, place).rows()


def sandbox(bench: Bench, folder: Path) -> Row:
    """Return what workers are shut in by on this kernel, as the first one that loads tells."""
    layers: list[str] = []
    for runtime in models.FILES:
        one = models.tiny(folder, runtime, "cpu", 1)
        with one.opened() as fds:
            layers = bench.client.prove(one.spec, fds).sandbox
        if layers:
            break
    missing = missing_layers(layers)
    why = f"this kernel or user lacks {', '.join(missing)}" if missing else ""
    state: State = "failed" if not layers else "absent" if missing else "passed"
    return Row("machine", "sandbox", state, why, {"layers": layers})


class _Pair:
    """One runtime on one kind of accelerator."""

    def __init__(self, bench: Bench, folder: Path, runtime: str, kind: str, place: Place) -> None:
        self._bench, self._name = bench, f"{runtime} on {kind}"
        both = (models.tiny(folder, runtime, kind, version) for version in (1, 2))
        self._models = [one._replace(spec=place(one.spec)) for one in both]
        self._workers: set[int] = set()

    def rows(self) -> Iterator[Row]:
        """Yield what was found; nothing more once it has failed."""
        outcome = self._prove()
        if outcome.code in NOT_HERE:
            yield self._row("golden", "absent", outcome.message)
            return
        if not outcome.ok:
            yield self._row("golden", "failed", f"{outcome.code}: {outcome.message}")
            return
        yield self._row("golden", "passed", "", load_ms=outcome.load_ms, cases=models.CASES)
        for part, trial in (("serve", self._serve), ("swap", self._swap), ("memory", self._memory)):
            try:
                yield self._tried(part, trial)
            except (OSError, UnavailableError) as error:
                yield self._row(part, "failed", str(error))
                return

    def _tried(self, part: str, trial: Callable[[dict[str, Any]], str]) -> Row:
        figures: dict[str, Any] = {}
        why = trial(figures)
        return self._row(part, "failed" if why else "passed", why, **figures)

    def _row(self, part: str, state: Any, why: str, **figures: Any) -> Row:
        return Row(part, self._name, state, why, figures)

    def _prove(self) -> Outcome:
        with self._models[0].opened() as fds:
            return self._bench.client.prove(self._models[0].spec, fds)

    def _load(self, one: TinyModel) -> Outcome:
        with one.opened() as fds:
            outcome = self._bench.client.load(one.spec, fds)
        if not outcome.ok:
            raise UnavailableError(outcome.message, code=outcome.code)
        self._workers.add(outcome.pid)
        return outcome

    def _ask(self) -> Application:
        return Application(self._bench.run / "infer.sock", self._models[0].question, models.MODEL)

    def _serve(self, figures: dict[str, Any]) -> str:
        outcome = self._load(self._models[0])
        self._bench.client.flip(models.MODEL, self._models[0].spec.digest)
        application, times = self._ask(), []
        for _ in range(ASKED):
            begun = time.perf_counter()
            status, outputs = application.ask()
            times.append(1e6 * (time.perf_counter() - begun))
            if status != 200 or outputs["label"][0] != self._models[0].label:
                return f"it answered {status} with {outputs}"
        application.close()
        times.sort()
        figures |= {
            "ready_ms": outcome.ready_ms, "p50_us": round(times[ASKED // 2]),
            "p99_us": round(times[ASKED * 99 // 100]), "memory_kb": outcome.memory_kb,
        }  # fmt: skip
        if outcome.accelerated_pct >= 0:
            figures["accelerated_pct"] = outcome.accelerated_pct
        return ""

    def _swap(self, figures: dict[str, Any]) -> str:
        """Swap to and fro while applications ask at full speed; every answer is looked at."""
        labels = {float(one.label) for one in self._models} | self._other_label()
        over, wrong, counts = threading.Event(), list[str](), [0] * CLIENTS

        def ask(number: int) -> None:
            try:
                application = self._ask()
                while not over.is_set():
                    status, outputs = application.ask()
                    counts[number] += 1
                    if status != 200 or outputs["label"][0] not in labels:
                        wrong.append(f"{status} {outputs}")
                application.close()
            except (OSError, ValueError) as error:
                wrong.append(str(error))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(SWAPS):
                self._go_to(self._models[(turn + 1) % 2], self._models[turn % 2])
        finally:
            over.set()
            for thread in threads:
                thread.join()
        figures |= {"swaps": SWAPS, "answers": sum(counts), "failed": len(wrong)}
        return f"{len(wrong)} answers failed, first: {wrong[0]}" if wrong else ""

    def _other_label(self) -> set[float]:
        """Return what the second version says to the first one's question."""
        self._go_to(self._models[1], self._models[0])
        application = self._ask()
        _, outputs = application.ask()
        application.close()
        self._go_to(self._models[0], self._models[1])
        return {float(outputs["label"][0])}

    def _go_to(self, new: TinyModel, old: TinyModel) -> None:
        self._load(new)
        self._bench.client.flip(models.MODEL, new.spec.digest)
        self._bench.client.release(old.spec.digest, 5)

    def _memory(self, figures: dict[str, Any]) -> str:
        """Compare the memory of all processes before a load and after its release."""
        self._bench.client.unroute(models.MODEL)
        before = self._settled()
        self._load(self._models[0])
        during = self._bench.memory_kb()
        self._bench.client.release(self._models[0].spec.digest, 0)
        after = self._settled()
        figures |= {"loaded_kb": during - before, "left_kb": after - before}
        over = after - before > LEFT_OVER_KB
        return f"{after - before} kB were not given back" if over else ""

    def _settled(self) -> int:
        """Return the memory once no worker is left and it no longer falls.

        A model counts as released before its process has ended. Measured in between, the memory
        before a load held a worker that was about to go, and the difference was negative.

        Raises:
            UnavailableError: A worker does not end.
        """
        deadline = time.monotonic() + SETTLE_S
        while self._workers & self._bench.processes():
            if time.monotonic() > deadline:
                raise UnavailableError(f"A worker has not ended within {SETTLE_S:.0f} s.")
            time.sleep(0.02)
        last = self._bench.memory_kb()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            last, before = self._bench.memory_kb(), last
            if last >= before:
                break
        return last
