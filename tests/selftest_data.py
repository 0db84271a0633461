"""Makes the models that ship with the selftest; its test compares them with what lies there.

uv run python -m tests.selftest_data        writes them anew
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import edgefleet_agent.selftest
from tests import models, tflite_models

FOLDER = Path(edgefleet_agent.selftest.__file__).parent / "data"
VERSIONS = (1, 2)
CASES = 3


def reference(version: int) -> list[tuple[dict, dict]]:
    """Return golden cases: inputs, and what numpy in double precision makes of them."""
    w = tflite_models.weights(version)
    x = np.random.default_rng(100 + version).normal(size=(CASES, 1, 64)).astype(np.float32)
    cases = []
    for one in x:
        hidden = np.maximum(one.astype(np.float64) @ w["w1"] + w["b1"], 0)
        scores = hidden @ w["w2"] + w["b2"]
        label = scores.argmax(axis=1).astype(np.int64)
        cases.append(({"x": one}, {"label": label, "scores": scores.astype(np.float32)}))
    return cases


def files() -> dict[str, bytes]:
    """Return every file by name."""
    found = {}
    for version in VERSIONS:
        found[f"tiny-{version}.onnx"] = models.mlp(version)
        found[f"tiny-{version}.tflite"] = tflite_models.mlp(version)
        found[f"tiny-{version}.safetensors"] = models.golden_bytes(reference(version))
    return found


if __name__ == "__main__":
    for name, data in files().items():
        (FOLDER / name).write_bytes(data)
