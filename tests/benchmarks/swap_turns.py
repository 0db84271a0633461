"""Swaps under load in turns with peace, and what memory does meanwhile."""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.benchmarks import load

CLIENTS = 4
WARM_UP_S = 1.0
TURN = 5
"""Swaps in a row, then as long a time in peace."""
LINE_MIN = 10
"""Points through which a line is drawn: fewer tell nothing."""


class Subject(Protocol):
    """Something that serves one of two models and can be brought to the other one."""

    address: str
    prepared: bool

    def swap(self, new: int) -> float:
        """Bring it to model `new`, 0 or 1; return the seconds that requests were held."""

    def pids(self) -> list[int]:
        """Return the processes that serve."""


class Effort(NamedTuple):
    """How much to do: so many swaps, fewer once `limit_s` is over, a pause after each.

    The first `settling` swaps are not counted: until then the heap of a gateway that has just
    started grows, as it does from requests without any swap.
    """

    swaps: int
    pause_s: float
    limit_s: float = math.inf
    peace_max_s: float = 4.0
    settling: int = 2


def measure(
    subject: Subject, command: list[str], folder: Path, request: bytes, effort: Effort
) -> dict[str, Any]:
    """Swap to and fro under load, in turns with peace; return the figures."""
    begin = time.monotonic()
    subject.swap(1)
    subject.swap(0)
    resting = _memory(subject)
    clients = load.Clients(command, folder, subject.address, request, CLIENTS)
    time.sleep(WARM_UP_S)
    for number in range(2, effort.settling):
        subject.swap((number + 1) % 2)
    swapping, peace, held, memory = [], [], [], [_memory(subject)]
    end = time.monotonic() + effort.limit_s
    with _peak(subject) as peaks:
        for number in range(effort.swaps):
            begun = time.monotonic_ns()
            held.append(subject.swap((number + 1) % 2))
            swapping.append((begun, time.monotonic_ns()))
            time.sleep(effort.pause_s)
            memory.append(_memory(subject))
            last = number + 1 == effort.swaps or (number > 0 and time.monotonic() > end)
            if (number + 1) % TURN == 0 or last:
                peace.append(_rest(swapping[-TURN:], effort.peace_max_s))
            if last:
                break
    rows = clients.stop()
    during, before = _within(rows, swapping), _within(rows, peace)
    seconds = sorted((stop - start) / 1e6 for start, stop in swapping)
    return {
        "swaps": len(swapping),
        "seconds": round(time.monotonic() - begin, 1),
        "prepared": subject.prepared,
        "requests": len(rows),
        "failed": sum(row[2] != 200 for row in rows),
        "failed_by_status": dict(Counter(row[2] for row in rows if row[2] != 200)),
        "p50_ratio": round(during["p50_us"] / before["p50_us"], 2),
        "p99_ratio": round(during["p99_us"] / before["p99_us"], 2),
        "peak_anonymous_ratio": round(max(anon for _, anon in peaks) / resting[1], 3),
        "peak_pss_ratio": round(max(pss for pss, _ in peaks) / resting[0], 3),
        **_slopes([anonymous for _, anonymous in memory]),
        "one_model_pss_kb": resting[0],
        "one_model_anonymous_kb": resting[1],
        "swap_median_ms": round(seconds[len(seconds) // 2], 1),
        "held_longest_ms": round(max(held) * 1e3, 1),
        "peace": before,
        "during": during,
    }


def _rest(swapping: list[tuple[int, int]], longest_s: float) -> tuple[int, int]:
    begun = time.monotonic_ns()
    took = sum(end - start for start, end in swapping) / 1e9
    time.sleep(min(took, longest_s))
    return begun, time.monotonic_ns()


def _slopes(values: list[int]) -> dict[str, Any]:
    """Return the slope over all swaps and that of their second half, each with its interval.

    What grows until it is warm and then stays shows in the first alone, a leak in both.
    """
    found: dict[str, Any] = {}
    for name, part in (("", values), ("_second_half", values[len(values) // 2 :])):
        if len(part) >= LINE_MIN:
            slope, margin = slope_of(part)
            found[f"memory_slope{name}_kb"] = round(slope, 2)
            found[f"memory_slope{name}_95_kb"] = [
                round(slope - margin, 2),
                round(slope + margin, 2),
            ]
    return found


def _memory(subject: Subject) -> tuple[int, int]:
    """Return the PSS of all that serves, and what of it belongs to no file."""
    totals = {"Pss": 0, "Pss_Anon": 0}
    for pid in subject.pids():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0])
    return totals["Pss"], totals["Pss_Anon"]


@contextmanager
def _peak(subject: Subject) -> Iterator[list[tuple[int, int]]]:
    """Look at the memory all the while."""
    found: list[tuple[int, int]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            found.append(_memory(subject))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _within(rows: list[tuple[int, int, int]], windows: list[tuple[int, int]]) -> dict[str, float]:
    """Summarise the rows whose answer came within one of the windows."""
    times = [row[0] for row in rows]
    found = []
    for begin, end in windows:
        found += rows[bisect.bisect_left(times, begin) : bisect.bisect_right(times, end)]
    summary = load.summary(found)
    del summary["longest_gap_ms"], summary["rps"], summary["seconds"]  # windows are not one time
    return summary


def slope_of(values: list[int]) -> tuple[float, float]:
    """Return the slope of a line through values at 0, 1, 2, ... and half its 95 % interval."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, sum(values) / n
    spread = sum((x - mean_x) ** 2 for x in range(n))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in enumerate(values))
    quantile = 1.96 + 2.8 / (n - 2)  # Student's, a little above it from 8 degrees of freedom on
    return slope, quantile * math.sqrt(rest / (n - 2) / spread)
