"""Swaps under load: nothing may fail, answers must not stall, memory must come back.

Four clients ask at full speed over the Unix socket, first in peace, then while the model is swapped
to and fro fifty times as agentd does it: prove, load, flip, release the old one.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgefleet_agent.ipc import control
from edgefleet_shared.histogram import EDGES_NS
from tests.agent.gateways import Gateway, fp32
from tests.benchmarks import load
from tests.models import Package, mlp, package

SWAPS = 50
CLIENTS = 4
WARM_UP_S = 1.0


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures; quick: ten seconds of peace and swaps without pauses."""
    peace_s, pause_s = (10.0, 0.1) if quick else (60.0, 1.0)
    with tempfile.TemporaryDirectory(prefix="ef") as name:
        folder = Path(name)
        command, language = load.build(folder)
        models = [
            package(folder, mlp(seed), version=f"{seed + 1}.0.0", name="digits") for seed in (0, 1)
        ]
        gateway = Gateway()
        try:
            return _measure(gateway, models, command, folder, peace_s, pause_s) | {
                "client": language,
                "clients": CLIENTS,
            }
        finally:
            gateway.close()


def _measure(
    gateway: Gateway,
    models: list[Package],
    command: list[str],
    folder: Path,
    peace_s: float,
    pause_s: float,
) -> dict[str, Any]:
    gateway.control.serve(models[0])
    body = json.dumps(fp32("x", [index / 64 for index in range(64)], [1, 64])).encode()
    request = load.http_request("/v2/models/digits/infer", body)

    def clients() -> load.Clients:
        one = load.Clients(command, folder, str(gateway.uds), request, CLIENTS)
        time.sleep(WARM_UP_S)
        gateway.control.stats()  # forgets the gap before the first answer
        return one

    asking = clients()
    time.sleep(peace_s)
    peace = load.summary(_settled(asking.stop()))
    asking = clients()
    memory, seconds = [], []
    for swap in range(SWAPS):
        old, new = models[swap % 2], models[(swap + 1) % 2]
        begun = time.monotonic()
        outcome = gateway.control.prove(new)
        assert outcome.ok, outcome
        gateway.control.serve(new)
        assert gateway.control.ask(control.Release, old.spec.digest).ok
        seconds.append(time.monotonic() - begun)
        time.sleep(pause_s)
        memory.append(_memory_kb(gateway))
    swaps = load.summary(_settled(asking.stop()))
    counted = gateway.control.stats().values()
    return {
        "swaps": SWAPS,
        "failed": swaps["failed"] + peace["failed"],
        "refused": sum(one.rejected for one in counted),
        "memory_ratio": round(memory[-1]["rss"] / memory[4]["rss"], 3),
        "anonymous_ratio": round(memory[-1]["anonymous"] / memory[4]["anonymous"], 3),
        "pss_ratio": round(memory[-1]["pss"] / memory[4]["pss"], 3),
        "memory_after_5_kb": dict(memory[4]),
        "memory_after_50_kb": dict(memory[-1]),
        "gap_ratio": round(swaps["longest_gap_ms"] / peace["longest_gap_ms"], 2),
        "wait_ratio": round(swaps["longest_wait_ms"] / peace["longest_wait_ms"], 2),
        "p50_ratio": round(swaps["p50_us"] / peace["p50_us"], 2),
        "p99_ratio": round(swaps["p99_us"] / peace["p99_us"], 2),
        "swap_median_ms": round(sorted(seconds)[len(seconds) // 2] * 1e3, 1),
        "swap_slowest_ms": round(max(seconds) * 1e3, 1),
        "slowest_in_gateway_ms": _slowest_ms(gateway),
        "peace": peace,
        "during": swaps,
    }


def _settled(rows: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Leave out the first moments, in which clients connect one after the other."""
    begin = rows[0][0] + int(WARM_UP_S * 1e9)
    return [row for row in rows if row[0] >= begin]


def _memory_kb(gateway: Gateway) -> Counter[str]:
    """Return the memory of gateway, zygote and workers together.

    rss counts a page once for each process that has it, and depends on nobody else; anonymous
    counts each page that belongs to no file once; pss is the fair share, which others who use the
    same libraries make smaller.
    """
    total: Counter[str] = Counter()
    names = {"Rss": "rss", "Pss": "pss", "Pss_Anon": "anonymous"}
    for pid in [gateway.process.pid, *gateway.children()]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                total[names[name]] += int(rest.split()[0])
    return total


def _slowest_ms(gateway: Gateway) -> float:
    """Return the slowest request as the gateway saw it, to 19 %: its histogram's last edge."""
    last = max(max(one.latency, default=0) for one in gateway.control.stats().values())
    return round(EDGES_NS[min(last, len(EDGES_NS) - 1)] / 1e6, 1)
