"""Four thousand mutants of a valid ONNX and of a valid TFLite model, and how each ended.

Each is judged by what a proving worker does, in its sandbox: with the digest that was signed, and
as if the mutant itself had been signed. A hundred of each go through a real gateway that serves
another model meanwhile. `--quick` takes a quarter.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.adversarial.breeding import PARENTS
from tests.adversarial.mutants import Bench

COUNT = 4000
SAMPLE = 100


def run(*, quick: bool) -> dict[str, Any]:
    """Return counts by format; raises if one got through that must not."""
    count = COUNT // 4 if quick else COUNT
    sample = SAMPLE // 4 if quick else SAMPLE
    return {form: _judged(form, count) | _through_the_gateway(form, sample) for form in PARENTS}


def _judged(form: str, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.adversarial.pen", form, str(count)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _through_the_gateway(form: str, count: int) -> dict[str, Any]:
    kinds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="ef") as folder:
        bench = Bench(Path(folder), form)
        try:
            for seed in range(count):
                outcome = bench.prove(seed)
                kinds["proved" if outcome.ok else outcome.code] += 1
            sound = bench.sound()
        finally:
            bench.close()
    return {"through_the_gateway": dict(sorted(kinds.items())), "gateway_sound": sound}
