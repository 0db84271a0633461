"""Reference histograms: how each input feature was distributed in training, for drift. Pure.

The sample .npz holds arrays named like the model's inputs; the first axis counts samples, the rest
is flattened and its indices are the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgefleet_provisioning.arrays import Array, Arrays
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import ReferenceHistogram, TensorSpec

BINS = 10
MAX_FEATURES = 64
DIGITS = 6  # significant ones of an edge; the manifest has 64 kB


def histograms(arrays: Arrays, inputs: Sequence[TensorSpec]) -> list[ReferenceHistogram]:
    """Return histograms of at most 64 features, spread evenly over all that there are.

    Raises:
        InvalidInputError: No array is named like an input, one is text, or there are no samples.
    """
    known = {spec.name: spec for spec in inputs}
    if foreign := set(arrays) - set(known):
        raise InvalidInputError(
            f"The sample holds {min(foreign)!r}, which is no input of the model.",
            code="sample_names",
            hint=f"The model's inputs are {', '.join(sorted(known))}.",
        )
    columns: list[tuple[str, int, Array]] = []
    for name, array in sorted(arrays.items()):
        if array.dtype.kind not in "biuf":
            raise InvalidInputError(
                f"The sample of {name!r} is {array.dtype}, not numbers.", code="array_type"
            )
        if array.ndim < 1 or array.shape[0] < 1 or array.size == 0:
            raise InvalidInputError(f"The sample of {name!r} is empty.", code="array_shape")
        flat = array.reshape(array.shape[0], -1).astype(np.float64)
        columns += [(name, index, flat[:, index]) for index in range(flat.shape[1])]
    chosen = np.unique(np.linspace(0, len(columns) - 1, MAX_FEATURES).round().astype(int))
    return [_histogram(*columns[index]) for index in chosen]


def _histogram(tensor: str, feature: int, values: Array) -> ReferenceHistogram:
    finite = values[np.isfinite(values)]
    edges = _edges(finite if finite.size else np.zeros(1))
    numbers = values[~np.isnan(values)]
    counts = np.bincount(np.searchsorted(edges, numbers, side="right"), minlength=len(edges) + 1)
    return ReferenceHistogram(
        tensor, feature, edges, [*(int(count) for count in counts), int(np.isnan(values).sum())]
    )


def _edges(values: Array) -> list[float]:
    """Return quantiles; equal steps where values repeat so much that quantiles coincide."""
    quantiles = _rounded(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    if len(quantiles) == BINS + 1:
        return quantiles
    low, high = float(values.min()), float(values.max())
    steps = _rounded(np.linspace(low, high, BINS + 1))
    if len(steps) == BINS + 1:
        return steps
    width = max(1.0, abs(low) * 0.1)  # the feature is (nearly) constant
    return _rounded(np.linspace(low - width / 2, low + width / 2, BINS + 1))


def _rounded(values: Array) -> list[float]:
    return sorted({float(f"{value:.{DIGITS}g}") for value in values})
