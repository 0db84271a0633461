"""Swaps under load: nothing may fail, answers must not slow down, memory must come back.

Four clients ask at full speed over the Unix socket while the model is swapped to and fro as
agentd does it: prove, load, flip, release the old one. Swaps and times in peace take turns, so
that both see the same machine. A tiny network, a prepared convolutional one, a drain of it.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent.ipc import control
from edgefleet_agent.store import hash_fd
from tests import tflite_models
from tests.agent.gateways import Gateway, fp32
from tests.benchmarks import load
from tests.models import Package, convolutions, mlp, package

SWAPS = 200
QUICK_SWAPS = {"tiny": 10, "litert": 10, "cnn": 2, "cnn_drain": 2}
"""A network that keeps every core busy leaves a load little time: its swaps are slow."""
CLIENTS = 4
WARM_UP_S = 1.0
TURN = 5
"""Swaps in a row, then as long a time in peace."""
PEACE_MAX_S = 4.0
ROOM = 200 * 2**20
CNN_LAYERS = 24
"""Of 2.4 MB each but the first two: 52 MB."""


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures; quick: fewer swaps, shorter pauses."""
    pause_s = 0.05 if quick else 0.2
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="ef") as name, ExitStack() as stack:
        folder = Path(name)
        command, figures["client"] = load.build(folder)
        for case, models, body in _cases(folder):
            gateway = Gateway()
            stack.callback(gateway.close)
            one = Case(gateway, models, folder, drain=case == "cnn_drain")
            swaps = QUICK_SWAPS[case] if quick else SWAPS
            figures[case] = one.run(command, body, swaps, pause_s)
            gateway.close()
            stack.pop_all()
    figures["failed"] = sum(part["failed"] for part in figures.values() if isinstance(part, dict))
    return figures


def _cases(folder: Path) -> Iterator[tuple[str, list[Package], bytes]]:
    tiny = [package(folder, mlp(seed), version=f"{seed + 1}.0.0", name="m") for seed in (0, 1)]
    values = fp32("x", [index / 64 for index in range(64)], [1, 64])
    yield "tiny", tiny, load.http_request("/v2/models/m/infer", json.dumps(values).encode())
    light = [
        package(folder, tflite_models.mlp(seed), version=f"{seed + 1}.0.0", name="m")
        for seed in (0, 1)
    ]
    yield "litert", light, load.http_request("/v2/models/m/infer", json.dumps(values).encode())
    cnn = [
        package(folder, convolutions(seed, CNN_LAYERS), version=f"{seed + 1}.0.0", name="m")
        for seed in (0, 1)
    ]
    picture = bytes(3 * 64 * 64 * 4)
    request = load.http_request("/v2/models/m/infer", picture, 0)
    yield "cnn", cnn, request
    yield "cnn_drain", cnn, request


class Case:
    """One pair of models, swapped to and fro in one gateway."""

    def __init__(
        self, gateway: Gateway, models: list[Package], folder: Path, *, drain: bool
    ) -> None:
        self.gateway, self.folder, self.drain = gateway, folder, drain
        self.models = models
        self.forms = [self._prepare(index, one) for index, one in enumerate(models)]

    def _prepare(self, index: int, one: Package) -> control.PreparedForm | None:
        """Make the prepared form, as a device does once."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        made = [os.open(path, flags) for path in self._paths(index)]
        outcome = self.gateway.control.ask(
            control.Prepare, one.spec, ROOM, files=[*one.open(), *made]
        )
        if not outcome.ok:
            assert outcome.code in {"does_not_pay", "nothing_to_prepare"}, outcome
            return None
        files = []
        for path in self._paths(index):
            fd = os.open(path, os.O_RDONLY)
            files.append(control.PreparedFile(hash_fd(fd), path.stat().st_size))
            os.close(fd)
        return control.PreparedForm(outcome.maker, files)

    def _paths(self, index: int) -> list[Path]:
        return [self.folder / f"form-{index}-{n}" for n in range(control.PREPARED_FILES)]

    def _ask(self, kind: type, index: int) -> control.Outcome:
        one, form = self.models[index], self.forms[index]
        files = one.open()
        spec = one.spec
        if form is not None:
            files += [os.open(path, os.O_RDONLY) for path in self._paths(index)]
            spec = msgspec.structs.replace(spec, prepared=form)
        outcome: control.Outcome = self.gateway.control.ask(kind, spec, files=files)
        assert outcome.ok, outcome
        assert outcome.prepared == (form is not None), outcome
        return outcome

    def swap(self, new: int) -> float:
        """Bring the model to the other version; return the seconds that requests were held."""
        spec, old = self.models[new].spec, self.models[1 - new].spec
        self._ask(control.Prove, new)
        held = time.monotonic()
        if self.drain:
            assert self.gateway.control.ask(control.Hold, spec.model, 10).ok
        self._ask(control.Load, new)
        assert isinstance(
            self.gateway.control.ask(control.Flip, spec.model, spec.digest), control.Flipped
        )
        held = time.monotonic() - held
        assert self.gateway.control.ask(control.Release, old.digest).ok
        return held if self.drain else 0.0

    def run(self, command: list[str], request: bytes, swaps: int, pause_s: float) -> dict[str, Any]:
        """Swap so often under load, in turns with peace; return the figures."""
        self.gateway.control.serve(self.models[0])
        self.swap(1)
        self.swap(0)
        resting = self._memory()
        clients = load.Clients(command, self.folder, str(self.gateway.uds), request, CLIENTS)
        time.sleep(WARM_UP_S)
        swapping, peace, held, memory = [], [], [], [self._memory()]
        with self._peak() as peaks:
            for number in range(swaps):
                begun = time.monotonic_ns()
                held.append(self.swap((number + 1) % 2))
                swapping.append((begun, time.monotonic_ns()))
                time.sleep(pause_s)
                memory.append(self._memory())
                if (number + 1) % TURN == 0 or number + 1 == swaps:
                    begun = time.monotonic_ns()
                    took = sum(end - start for start, end in swapping[-TURN:]) / 1e9
                    time.sleep(min(took, PEACE_MAX_S))
                    peace.append((begun, time.monotonic_ns()))
        rows = clients.stop()
        during, before = _within(rows, swapping), _within(rows, peace)
        slope, margin = slope_of([anonymous for _, anonymous in memory])
        seconds = sorted((end - begun) / 1e6 for begun, end in swapping)
        return {
            "swaps": swaps,
            "prepared": self.forms[0] is not None,
            "requests": len(rows),
            "failed": sum(row[2] != 200 for row in rows),
            "p50_ratio": round(during["p50_us"] / before["p50_us"], 2),
            "p99_ratio": round(during["p99_us"] / before["p99_us"], 2),
            "peak_anonymous_ratio": round(max(anon for _, anon in peaks) / resting[1], 3),
            "peak_pss_ratio": round(max(pss for pss, _ in peaks) / resting[0], 3),
            "memory_slope_kb": round(slope, 2),
            "memory_slope_95_kb": [round(slope - margin, 2), round(slope + margin, 2)],
            "one_model_pss_kb": resting[0],
            "one_model_anonymous_kb": resting[1],
            "swap_median_ms": round(seconds[len(seconds) // 2], 1),
            "held_longest_ms": round(max(held) * 1e3, 1),
            "peace": before,
            "during": during,
        }

    def _memory(self) -> tuple[int, int]:
        """Return the PSS of gateway, zygote and workers, and what of it belongs to no file."""
        totals = {"Pss": 0, "Pss_Anon": 0}
        for pid in [self.gateway.process.pid, *self.gateway.children()]:
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has just ended
            for line in text.splitlines():
                name, _, rest = line.partition(":")
                if name in totals:
                    totals[name] += int(rest.split()[0])
        return totals["Pss"], totals["Pss_Anon"]

    @contextmanager
    def _peak(self) -> Iterator[list[tuple[int, int]]]:
        """Look at the memory all the while."""
        found: list[tuple[int, int]] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                found.append(self._memory())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()


def _within(rows: list[tuple[int, int, int]], windows: list[tuple[int, int]]) -> dict[str, float]:
    """Summarise the rows whose answer came within one of the windows."""
    times = [row[0] for row in rows]
    found = []
    for begin, end in windows:
        found += rows[bisect.bisect_left(times, begin) : bisect.bisect_right(times, end)]
    summary = load.summary(found)
    del summary["longest_gap_ms"], summary["rps"], summary["seconds"]  # windows are not one time
    return summary


def slope_of(values: list[int]) -> tuple[float, float]:
    """Return the slope of a line through values at 0, 1, 2, ... and half its 95 % interval."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, sum(values) / n
    spread = sum((x - mean_x) ** 2 for x in range(n))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in enumerate(values))
    return slope, 1.98 * math.sqrt(rest / (n - 2) / spread)
