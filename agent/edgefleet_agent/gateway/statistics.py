"""Triton's statistics extension, from what the gateway counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgefleet_agent.ipc.control import DigestStats


def model_statistics(found: Iterable[DigestStats], model: str, version: str) -> dict[str, Any]:
    """Return `model_stats` of loaded versions.

    Args:
        found: Every digest's counters.
        model: A model, or '' for all.
        version: One of its versions, or '' for all.
    """
    wanted = [
        _one(stats)
        for stats in found
        if stats.role != "released"
        and model in {"", stats.model}
        and version in {"", stats.version}
    ]
    return {"model_stats": wanted}


def _one(stats: DigestStats) -> dict[str, Any]:
    """Return one version's statistics.

    A request waits, and hops, for all of its time but the worker's run; decoding and encoding are
    part of that: `compute_input` and `compute_output` are counted and have no time of their own.
    """
    done, failed = stats.requests, failures(stats)
    none = {"count": 0, "ns": 0}
    infer = {"count": done, "ns": stats.compute_ns}
    return {
        "name": stats.model,
        "version": stats.version,
        "last_inference": stats.last_ms,
        "inference_count": stats.inferences,
        "execution_count": stats.executions,
        "inference_stats": {
            "success": {"count": done, "ns": stats.latency_ns},
            "fail": {"count": failed, "ns": stats.failed_ns},
            "queue": {"count": done, "ns": queued_ns(stats)},
            "compute_input": {"count": done, "ns": 0},
            "compute_infer": infer,
            "compute_output": {"count": done, "ns": 0},
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [_batch(rows, *runs) for rows, runs in sorted(stats.batches.items())],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": stats.memory_kb * 1024}],
    }


def _batch(rows: int, runs: int, spent_ns: int) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": {"count": runs, "ns": 0},
        "compute_infer": {"count": runs, "ns": spent_ns},
        "compute_output": {"count": runs, "ns": 0},
    }


def failures(stats: DigestStats) -> int:
    """Return how many requests were answered otherwise than 200."""
    return stats.client_errors + stats.server_errors + stats.rejected


def queued_ns(stats: DigestStats) -> int:
    """Return the time of answered requests that the worker did not run."""
    return max(0, stats.latency_ns - stats.compute_ns)
