"""What shutting workers in costs: one gateway with the sandbox, one without, in turns.

Proving a package (a process, the lint, load, golden-free warm-up) and a request's latency over the
Unix socket, one client. The other gateway's workers skip Landlock, seccomp, capabilities, network
namespace and lint by a patch that only this benchmark knows; the product has no such switch.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from edgefleet_agent.worker import lint
from tests.agent.gateways import Gateway, fp32
from tests.models import Package, mlp, package

ROOT = Path(__file__).parents[2]
PATCH = (
    "import edgefleet_agent.worker.sandbox as s, edgefleet_agent.worker.lint as l\n"
    "s.confine = lambda files, **_: ['rlimits', 'no_new_privs']\n"
    "l.check = lambda spec, files: None\n"
)
ROUNDS = 9


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures; quick: fewer proofs and requests a round."""
    proofs, requests = (8, 1500) if quick else (40, 10_000)
    with tempfile.TemporaryDirectory(prefix="ef") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(PATCH)
        one = package(folder, mlp())
        path = f"{folder}{os.pathsep}{ROOT}"
        gateways = [Gateway(), Gateway(environ={"PYTHONPATH": path})]
        try:
            return _measure(gateways, one, proofs, requests) | {"lint_us": _lint_us(one)}
        finally:
            for gateway in gateways:
                gateway.close()


def _measure(gateways: list[Gateway], one: Package, proofs: int, requests: int) -> dict[str, Any]:
    layers = []
    for gateway in gateways:
        layers.append(gateway.control.serve(one).sandbox)
        _ask(gateway, requests)
    prove: list[list[float]] = [[], []]
    ask: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for index, gateway in enumerate(gateways):
            prove[index].append(_prove_ms(gateway, one, proofs))
            ask[index].append(_ask(gateway, requests))
    return {
        "layers": layers[0],
        "layers_without": layers[1],
        "prove_ms": round(statistics.median(prove[0]), 2),
        "prove_ms_without": round(statistics.median(prove[1]), 2),
        "prove_ratio": _ratio(*prove),
        "p50_us": round(statistics.median(ask[0]), 1),
        "p50_us_without": round(statistics.median(ask[1]), 1),
        "p50_ratio": _ratio(*ask),
    }


def _ratio(with_it: list[float], without: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(with_it, without, strict=True)), 3)


def _prove_ms(gateway: Gateway, one: Package, count: int) -> float:
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        assert gateway.control.prove(one).ok
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def _ask(gateway: Gateway, count: int) -> float:
    """Return the median latency of `count` requests, microseconds."""
    body = json.dumps(fp32("x", [index / 64 for index in range(64)], [1, 64]))
    connection = gateway.connect()
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        connection.request("POST", "/v2/models/m/infer", body)
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - begun)
        assert answer.status == 200
    connection.close()
    return statistics.median(times) * 1e6


def _lint_us(one: Package) -> float:
    files = one.open()
    try:
        times = []
        for _ in range(200):
            begun = time.perf_counter()
            lint.check(one.spec, files)
            times.append(time.perf_counter() - begun)
        return round(statistics.median(times) * 1e6, 1)
    finally:
        for file in files:
            os.close(file)
