"""Latency histograms with fixed edges, so that merging any grouping of devices is exact addition.

Bucket i holds values below `EDGES_NS[i]` and not below `EDGES_NS[i - 1]`; the last bucket holds the
rest. Edges grow by 2^(1/4) from 1 microsecond to 134 seconds, so a quantile read from a bucket's
geometric middle is off by at most 9 %.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import sqrt

EDGES_NS: tuple[int, ...] = tuple(round(1000 * 2 ** (i / 4)) for i in range(109))

Counts = dict[int, int]
"""Bucket index to count; buckets that are absent hold nothing."""


def bucket(value_ns: int) -> int:
    """Return the index of the bucket that `value_ns` (nanoseconds) falls into."""
    return bisect_right(EDGES_NS, value_ns)


def merge(*parts: Mapping[int, int]) -> Counts:
    """Return the exact sum of histograms."""
    total: Counts = {}
    for part in parts:
        for index, count in part.items():
            total[index] = total.get(index, 0) + count
    return total


def difference(later: Mapping[int, int], earlier: Mapping[int, int]) -> Counts:
    """Return what was added between two cumulative readings of one histogram."""
    found = {index: count - earlier.get(index, 0) for index, count in later.items()}
    return {index: count for index, count in found.items() if count > 0}


def quantile_ns(counts: Mapping[int, int], q: float) -> int | None:
    """Return the value in nanoseconds below which a share `q` lies; None for an empty histogram."""
    total = sum(counts.values())
    if not total:
        return None
    rank, seen = q * total, 0
    for index in sorted(counts):
        seen += counts[index]
        if seen >= rank:
            low = EDGES_NS[index - 1] if index else EDGES_NS[0] / 2
            high = EDGES_NS[index] if index < len(EDGES_NS) else EDGES_NS[-1] * 2
            return round(sqrt(low * high))
    return EDGES_NS[-1]  # pragma: no cover - the loop reaches the rank
