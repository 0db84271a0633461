"""The demo's own arithmetic: what it reports follows from its traffic and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgefleet_provisioning.demo import measure
from edgefleet_provisioning.demo.load import LOST

SECOND = 1_000_000_000


def traffic(folder: Path, rows: list[tuple[int, ...]], versions: list[list[str]]):
    """Write rows as the load process does, and read them back."""
    path = folder / "load.npz"
    np.savez(
        path,
        rows=np.array(rows, dtype=np.int64),
        versions=json.dumps(versions),
        errors=json.dumps(["OSError()"]),
    )
    return measure.read(path)


def steady(device: int, start_s: float, count: int, every_ms: int, took_ms: int, version: int):
    """Requests of one device at an even pace, all answered rightly."""
    begin = int(start_s * SECOND)
    return [
        (device, begin + i * every_ms * 1_000_000,
         begin + (i * every_ms + took_ms) * 1_000_000, version, 7, 7, 1)
        for i in range(count)
    ]  # fmt: skip


def test_accuracy_is_counted_for_each_version_alone(tmp_path):
    """An answer counts for the version that gave it; a version that never answered has none."""
    rows = [(0, 0, 10, 0, 1, 1, 1), (0, 20, 30, 0, 1, 2, 1), (0, 40, 50, 1, 3, 3, 1)]
    seen = traffic(tmp_path, rows, [["1.0.0", "2.0.0"]])
    assert measure.accuracy(seen, "1.0.0") == 0.5
    assert measure.accuracy(seen, "2.0.0") == 1.0
    assert measure.accuracy(seen, "3.0.0") is None


def test_devices_number_versions_in_their_own_order(tmp_path):
    """Version index 0 of one device may be another version than index 0 of the next."""
    rows = [(0, 0, 10, 0, 1, 1, 1), (1, 0, 10, 0, 1, 2, 1)]
    seen = traffic(tmp_path, rows, [["1.0.0"], ["2.0.0"]])
    assert list(seen.version) == ["1.0.0", "2.0.0"]


def test_a_lost_request_counts_as_failed_and_a_nan_answer_does_not(tmp_path):
    """Failed means no answer; an answer that is not a number is counted beside it."""
    rows = [(0, 0, 10, 0, 1, 1, 1), (0, 20, 30, LOST, 1, -1, 0), (0, 40, 50, 0, 3, 3, 0)]
    result = measure.inference(traffic(tmp_path, rows, [["1.0.0"]]))
    assert (result["requests"], result["failed"], result["nonfinite_answers"]) == (3, 1, 1)


@pytest.mark.parametrize(("pause_ms", "expected"), [(0, 10.0), (250, 260.0)])
def test_the_longest_gap_is_between_answers_around_the_flip(tmp_path, pause_ms, expected):
    """A pause at the flip shows as the gap; without one, the gap is the pace."""
    rows = steady(0, 0.0, 400, 10, 4, 0)
    rows += steady(0, 4.0 + pause_ms / 1000, 200, 10, 6, 1)
    result = measure.swap(traffic(tmp_path, rows, [["1.0.0", "2.0.0"]]), "1.0.0", "2.0.0")
    assert result["longest_gap_ms"] == pytest.approx(expected, abs=2.1)
    assert result["p50_ms_before"] == 4.0
    assert result["p99_ms_during"] == 6.0
    assert result["failed"] == 0


def test_a_device_that_never_swapped_does_not_count(tmp_path):
    """Only a device that answered by both versions has a swap to measure."""
    seen = traffic(tmp_path, steady(0, 0.0, 100, 10, 4, 0), [["1.0.0"]])
    assert measure.swap(seen, "1.0.0", "2.0.0")["requests"] == 0
