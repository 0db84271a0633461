"""What the demo reports of its own traffic: pure arithmetic over the load process's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgefleet_provisioning.demo.load import LOST

WINDOW_NS = 2_000_000_000  # of steady traffic before a swap, and around each flip


class Traffic(NamedTuple):
    """Every request of every device, one row each; see `load.Client`.

    `version` holds version strings, '' where no answer came. Times are CLOCK_MONOTONIC nanoseconds.
    """

    device: npt.NDArray[np.int64]
    begun: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]
    version: npt.NDArray[np.str_]
    asked: npt.NDArray[np.int64]
    answered: npt.NDArray[np.int64]
    finite: npt.NDArray[np.int64]
    errors: list[str]


def read(path: Path) -> Traffic:
    """Read what `load.main` wrote."""
    data = np.load(path)
    rows = data["rows"].reshape(-1, 7)
    names = json.loads(str(data["versions"]))
    version = np.array(
        ["" if number == LOST else names[device][number] for device, number in rows[:, (0, 3)]],
        dtype=np.str_,
    )
    return Traffic(
        rows[:, 0], rows[:, 1], rows[:, 2], version, rows[:, 4], rows[:, 5], rows[:, 6],
        json.loads(str(data["errors"])),
    )  # fmt: skip


def inference(traffic: Traffic) -> dict[str, Any]:
    """Return requests, failures and the accuracy of the first two versions on held-out digits."""
    return {
        "requests": len(traffic.device),
        "failed": int((traffic.version == "").sum()),
        "accuracy_1": accuracy(traffic, "1.0.0"),
        "accuracy_2": accuracy(traffic, "2.0.0"),
        "nonfinite_answers": int(((traffic.version != "") & (traffic.finite == 0)).sum()),
        "errors": traffic.errors,
    }


def accuracy(traffic: Traffic, version: str) -> float | None:
    """Return the share of right answers of one version; None if it never answered."""
    mine = traffic.version == version
    if not mine.any():
        return None
    return round(float((traffic.asked[mine] == traffic.answered[mine]).mean()), 4)


def swap(traffic: Traffic, old: str, new: str) -> dict[str, Any]:
    """Return what the change from `old` to `new` did to requests, over all devices.

    `before` is the two seconds up to one second before a device's first answer by `new`; `during`
    is one second either side of that answer. The longest gap is between two answers of one device
    in `during`. Latencies are milliseconds.
    """
    before: list[float] = []
    during: list[float] = []
    gaps: list[int] = []
    failed = 0
    for device in np.unique(traffic.device):
        mine = traffic.device == device
        by_new = mine & (traffic.version == new)
        if not by_new.any() or not (mine & (traffic.version == old)).any():
            continue
        flip = traffic.ended[by_new].min()
        around = mine & (np.abs(traffic.ended - flip) <= WINDOW_NS // 2)
        steady = (
            mine
            & (traffic.ended < flip - WINDOW_NS // 2)
            & (traffic.ended >= flip - WINDOW_NS // 2 - WINDOW_NS)
            & (traffic.version == old)
        )
        milliseconds = (traffic.ended - traffic.begun) / 1e6
        during += list(milliseconds[around])
        before += list(milliseconds[steady])
        gaps += list(np.diff(np.sort(traffic.ended[around & (traffic.version != "")])))
        failed += int((around & (traffic.version == "")).sum())
    return {
        "requests": len(during),
        "failed": failed,
        "p50_ms_before": _percentile(before, 50),
        "p99_ms_before": _percentile(before, 99),
        "p99_ms_during": _percentile(during, 99),
        "longest_gap_ms": round(max(gaps) / 1e6, 3) if gaps else None,
    }


def _percentile(values: list[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 3) if values else None
