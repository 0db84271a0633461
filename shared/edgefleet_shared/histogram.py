"""Latency histograms with fixed edges, so that merging any grouping of devices is exact addition.

Bucket i holds values below `EDGES_NS[i]` and not below `EDGES_NS[i - 1]`; the last bucket holds the
rest. Edges grow by 2^(1/4) from 1 microsecond to 134 seconds, so a quantile between them, read from
a bucket's geometric middle, is off by at most 9.1 %.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import sqrt

from edgefleet_shared.errors import InvalidInputError

EDGES_NS: tuple[int, ...] = tuple(round(1000 * 2 ** (i / 4)) for i in range(109))

Counts = dict[int, int]
"""Bucket index to count; buckets that are absent hold nothing."""


def bucket(value_ns: int) -> int:
    """Return the index of the bucket that `value_ns` (nanoseconds) falls into."""
    return bisect_right(EDGES_NS, value_ns)


def check(counts: Mapping[int, int]) -> None:
    """Check a histogram that came from elsewhere.

    Raises:
        InvalidInputError: A bucket that does not exist, or a negative count (code `malformed`).
    """
    for index, count in counts.items():
        if not 0 <= index <= len(EDGES_NS) or count < 0:
            raise InvalidInputError(
                f"A histogram cannot hold {count} in bucket {index}.", code="malformed"
            )


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
    """Return the value in nanoseconds below which a share `q` (0 to 1) lies; None if it is empty.

    What came from elsewhere passes `check` first.
    """
    filled = sorted(index for index, count in counts.items() if count)
    if not filled:
        return None
    rank, seen = q * sum(counts.values()), 0
    found = filled[-1]
    for index in filled:
        seen += counts[index]
        if seen >= rank:
            found = index
            break
    low = EDGES_NS[found - 1] if found else EDGES_NS[0] / 2
    high = EDGES_NS[found] if found < len(EDGES_NS) else EDGES_NS[-1] * 2
    return round(sqrt(low * high))
