"""The one door to the benchmarks; without a name it lists them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.device import compile_imports

NAMES = {
    "batching": "rates of a wide network with and without batches, beside raw onnxruntime",
    "idle": "what agentd costs while nothing happens: private memory, processor time",
    "inference": "a tiny model and a CNN, beside raw onnxruntime, FastAPI and MLServer; memory",
    "iothub": "a rollout to 5,000 simulated devices within an S1 hub's limits",
    "mutants": "4,000 mutants of an ONNX and of a TFLite model, and how each ended",
    "sandbox": "what shutting workers in costs: proving, and the latency of a request",
    "swap": "swaps to and fro under four clients at full speed, containers and MLServer too",
    "trust": "an assignment verified beside one bare signature, memory, 10,000 signed",
}


def stolen_ms() -> int:
    """Return the time that a hypervisor has kept this machine's cores from it."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) * 1000 // os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run one benchmark; with `--json` its figures are the last line, one object."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(NAMES))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="within a minute on 2 quiet cores")
    length.add_argument("--full", action="store_true", help="the default")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object, last")
    parser.add_argument("--case", action="append", help="this case alone, where there are cases")
    given = parser.parse_args()
    if given.name is None:
        for name, text in NAMES.items():
            print(f"{name:12} {text}")
        return 0
    compile_imports()
    before = stolen_ms()
    module = import_module(f"tests.benchmarks.{given.name}")
    cases = getattr(module, "CASES", ())
    if unknown := set(given.case or ()) - set(cases):
        known = f"of {', '.join(cases)}" if cases else "at all"
        parser.error(f"{given.name} has no case {min(unknown)}, only {known}")
    chosen = {"cases": given.case} if given.case else {}
    figures = module.run(quick=given.quick, **chosen)
    figures["cores"] = len(os.sched_getaffinity(0))
    figures["stolen_ms"] = stolen_ms() - before
    for key, value in figures.items():
        print(f"{key}: {value}", file=sys.stderr if given.json else sys.stdout)
    if given.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
