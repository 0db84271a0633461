"""Between tensors and the integers of a core, as a manifest declares it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgefleet_shared.package import Port

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
}  # fmt: skip
"""What a core's tensors may be, by the names of the Open Inference Protocol."""


def to_words(array: np.ndarray, port: Port) -> list[int]:
    """Return an array's elements as register words: scaled, rounded, saturated, extended.

    Raises:
        ValueError: An element is not a number.
    """
    low, high = port.bounds()
    scaled = np.ldexp(array.astype(np.float64, copy=False).ravel(), port.fraction)
    if np.isnan(scaled).any():
        raise ValueError(f"Input {port.tensor!r} holds NaN, which no integer is.")
    integers = np.clip(np.rint(scaled), low, high).astype(np.int64)
    return [int(word) for word in (integers & 0xFFFFFFFF).tolist()]


def from_words(words: list[int], port: Port, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    """Return the tensor that register words stand for."""
    integers = np.array(words, np.int64) & ((1 << port.bits) - 1)
    if port.signed:
        sign = 1 << (port.bits - 1)
        integers = (integers ^ sign) - sign
    if np.issubdtype(dtype, np.integer) and not port.fraction:
        return integers.astype(dtype).reshape(shape)
    return np.ldexp(integers.astype(np.float64), -port.fraction).astype(dtype).reshape(shape)
