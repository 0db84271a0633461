"""The fixed-point network of the test cores: weights by seed, and the integer reference.

16 inputs of 8 bits, 8 hidden sums cut at 0, 4 outputs of 22 bits. Every operation is exact, so that
hardware, simulation and this agree in every bit or one of them is wrong.
"""

from __future__ import annotations

import hashlib

import numpy as np

INPUTS, HIDDEN, OUTPUTS = 16, 8, 4
IN_BITS, OUT_BITS = 8, 22
IN_FRACTION, OUT_FRACTION = 4, 8
CORE_ID = 0xEDF1
OFFSET_IN, OFFSET_OUT, SIZE = 0x40, 0x80, 0x100


def weights(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the integer weights and biases of a version."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-8, 8, (INPUTS, HIDDEN)),
        rng.integers(-64, 64, HIDDEN),
        rng.integers(-8, 8, (HIDDEN, OUTPUTS)),
    )


def reference(seed: int, x: np.ndarray) -> np.ndarray:
    """Return the outputs' integers for input integers of shape [n, 16]."""
    first, bias, second = weights(seed)
    return np.maximum(x.astype(np.int64) @ first + bias, 0) @ second


def infer(seed: int, x: np.ndarray) -> np.ndarray:
    """Return what the core answers to floats of shape [n, 16]: quantise, compute, scale."""
    low, high = -(2 ** (IN_BITS - 1)), 2 ** (IN_BITS - 1) - 1
    integers = np.clip(np.rint(x.astype(np.float64) * 2**IN_FRACTION), low, high)
    return (reference(seed, integers) / 2.0**OUT_FRACTION).astype(np.float32)


def build(seed: int) -> str:
    """Return the digest that the core of a seed carries."""
    return hashlib.sha256(b"".join(part.tobytes() for part in weights(seed))).hexdigest()
