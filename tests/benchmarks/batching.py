"""What batching is worth for a wide network, beside raw onnxruntime at the same batch size.

Two dense layers of 34 MB of weights: reading them costs more than computing with one row. The same
model with batches of up to 8 or 32 rows and without, asked by 8 and 32 clients in C, one row a
request; and by one client, who has nothing of it. All take turns.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from edgefleet_shared.package import Batching
from tests.agent.gateways import Gateway
from tests.batch_models import wide_mlp
from tests.benchmarks import inference, load
from tests.models import package

WIDTH = 1024
MODELS = {"plain": None, "batch_8": Batching(8), "batch_32": Batching(32)}
CLIENTS = (1, 8, 32)
ROWS = (1, 8, 32)

Rows = dict[str, list[dict[str, float]]]


def run(*, quick: bool) -> dict[str, Any]:
    """Return medians over rounds in which all take turns, and medians of the rounds' ratios."""
    rounds, seconds = (2, 0.7) if quick else (9, 3.0)
    with tempfile.TemporaryDirectory(prefix="ef") as made, contextlib.ExitStack() as stack:
        folder = Path(made)
        command, language = load.build(folder)
        gateway = _serve(folder, stack)
        found: Rows = {}
        for _ in range(rounds):
            for name in MODELS:
                request = inference._binary(name, "x", [1, WIDTH], bytes(4 * WIDTH))
                for clients in CLIENTS:
                    before = _runs(gateway, name)
                    asking = load.Clients(
                        command, folder, str(gateway.uds), request, clients, seconds
                    )
                    row = load.summary(asking.stop(now=False))
                    row["rows_a_run"] = _mean(before, _runs(gateway, name))
                    found.setdefault(f"{name}_{clients}", []).append(row)
            for rows in ROWS:
                found.setdefault(f"raw_{rows}", []).append(_raw(folder, rows, seconds))
    medians = {
        name: {field: round(median(row[field] for row in rows), 2) for field in rows[0]}
        for name, rows in found.items()
    }
    return {
        **_ratios(found),
        "failed": sum(int(row.get("failed", 0)) for rows in found.values() for row in rows),
        "load_average": os.getloadavg()[0],
        "client": language,
        "rounds": rounds,
        "seconds_each": seconds,
        **medians,
    }


def _serve(folder: Path, stack: contextlib.ExitStack) -> Gateway:
    gateway = Gateway()
    stack.callback(gateway.close)
    body = wide_mlp(width=WIDTH)
    (folder / "wide.onnx").write_bytes(body)
    for name, batching in MODELS.items():
        gateway.control.serve(package(folder, body, name=name, batching=batching))
    return gateway


def _runs(gateway: Gateway, model: str) -> tuple[int, int]:
    """Return rows and runs so far."""
    (one,) = [s for s in gateway.control.stats().values() if s.model == model]
    return one.inferences, one.executions


def _mean(before: tuple[int, int], after: tuple[int, int]) -> float:
    return round((after[0] - before[0]) / max(1, after[1] - before[1]), 2)


def _raw(folder: Path, rows: int, seconds: float) -> dict[str, float]:
    """Run the bare model in as many threads as cores; `rps` counts rows."""
    shape = f"{rows},{WIDTH}"
    model = folder / "wide.onnx"
    found = inference._raw(model, "x", shape, inference.CORES, seconds)
    return {**found, "rps": found["rps"] * rows}


def _ratios(found: Rows) -> dict[str, float]:
    """Return medians of the rounds' ratios."""

    def ratio(field: str, ours: str, theirs: str) -> float:
        pairs = zip(found[ours], found[theirs], strict=True)
        return round(median(one[field] / other[field] for one, other in pairs), 3)

    return {
        "rps_8_clients_of_plain": ratio("rps", "batch_8_8", "plain_8"),
        "rps_32_clients_of_plain": ratio("rps", "batch_32_32", "plain_32"),
        "rps_8_clients_of_raw_8": ratio("rps", "batch_8_8", "raw_8"),
        "rps_32_clients_of_raw_32": ratio("rps", "batch_32_32", "raw_32"),
        "p50_1_client_of_plain": ratio("p50_us", "batch_8_1", "plain_1"),
        "p99_8_clients_of_plain": ratio("p99_us", "batch_8_8", "plain_8"),
        "raw_8_of_raw_1": ratio("rps", "raw_8", "raw_1"),
    }
