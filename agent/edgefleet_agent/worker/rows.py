"""Inputs of several calls joined along the first axis, and outputs split again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Shape(NamedTuple):
    """What calls must have in common to be run as one, and how many rows one of them brings.

    `key` is None for a call that cannot be joined to any other.
    """

    key: tuple[object, ...] | None
    rows: int


def shape_of(inputs: Arrays) -> Shape:
    """Return an input's rows, and by what it may be joined: datatypes, and the axes behind them."""
    counts = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    if len(counts) != 1 or 0 in counts:
        return Shape(None, max(counts, default=0) or 1)
    key = tuple((name, inputs[name].dtype, inputs[name].shape[1:]) for name in sorted(inputs))
    return Shape(key, counts.pop())


def join(calls: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Return the inputs of one run for calls of one key."""
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def split(
    found: Arrays, names: Sequence[str], rows: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield each call's part of the outputs.

    Args:
        found: What the run gave.
        names: The outputs that the model declares.
        rows: How many rows each call brought.

    Raises:
        ValueError: An output has not one row for each.
    """
    total = sum(rows)
    for name in names:
        if found[name].shape[:1] != (total,):
            raise ValueError(
                f"Output {name!r} has the shape {list(found[name].shape)} for {total} rows."
            )
    begin = 0
    for count in rows:
        yield {name: found[name][begin : begin + count] for name in names}
        begin += count
