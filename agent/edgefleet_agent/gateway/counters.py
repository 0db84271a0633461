"""What the gateway counts for one digest, over its whole life."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgefleet_agent.ipc import loans
from edgefleet_agent.ipc.control import DigestStats, ModelSpec
from edgefleet_shared.histogram import Counts, bucket

_MOST = 2**62
"""What every reader can hold; a worker that counts itself may count anything."""


class Counters:
    """Cumulative; see `control.DigestStats` for what each field means."""

    __slots__ = (
        "accelerated_pct", "batches", "client_errors", "compute", "compute_ns", "crashes",
        "executions", "failed_ns", "inferences", "last_ns", "latency", "latency_ns", "memory_kb",
        "nonfinite", "rejected", "replayed", "requests", "server_errors", "spec",
    )  # fmt: skip

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.requests = 0
        self.client_errors = 0
        self.server_errors = 0
        self.rejected = 0
        self.nonfinite = 0
        self.replayed = 0
        self.crashes = 0
        self.memory_kb = 0
        self.accelerated_pct = -1
        self.latency: Counts = {}
        self.compute: Counts = {}
        self.latency_ns = 0  # sums, as the histograms
        self.compute_ns = 0
        self.failed_ns = 0  # of all that were not answered 200
        self.last_ns = 0  # last answer, Unix time
        self.executions = 0  # of a model that is run in batches; else each request is one
        self.inferences = 0  # their rows
        self.batches: dict[int, tuple[int, int]] = {}

    def answered(self, latency_ns: int, compute_ns: int, nonfinite: bool) -> None:
        """Count an answer with status 200."""
        self.requests += 1
        self.latency_ns += latency_ns
        self.compute_ns += compute_ns
        self.last_ns = time.time_ns()
        if nonfinite:
            self.nonfinite += 1
        index = bucket(latency_ns)
        self.latency[index] = self.latency.get(index, 0) + 1
        index = bucket(compute_ns)
        self.compute[index] = self.compute.get(index, 0) + 1

    def ran(self, rows: int, compute_ns: int) -> None:
        """Count one run of a model that is run in batches."""
        self.executions += 1
        self.inferences += rows
        assert self.spec.batching is not None
        if rows <= self.spec.batching.max_batch_size:  # a request that brings more is no batch
            runs, spent = self.batches.get(rows, (0, 0))
            self.batches[rows] = runs + 1, min(spent + compute_ns, _MOST)

    def refused(self, status: int, latency_ns: int) -> None:
        """Count an answer with another status."""
        self.failed_ns += latency_ns
        if status == 503:
            self.rejected += 1
        elif status < 500:
            self.client_errors += 1
        else:
            self.server_errors += 1

    def grow(self, grown: Sequence[int]) -> None:
        """Add what a worker counted itself, in the order of `loans`' words."""
        self.requests += grown[loans.REQUESTS]
        self.client_errors += grown[loans.CLIENT_ERRORS]
        self.server_errors += grown[loans.SERVER_ERRORS]
        self.nonfinite += grown[loans.NONFINITE]
        self.latency_ns += grown[loans.LATENCY_NS]
        self.compute_ns += grown[loans.COMPUTE_NS]
        self.failed_ns += grown[loans.FAILED_NS]
        if grown[loans.REQUESTS]:
            self.last_ns = time.time_ns()  # at the latest
        for counts, first in ((self.latency, loans.LATENCY), (self.compute, loans.COMPUTE)):
            for index in range(loans.BUCKETS):
                if grown[first + index]:
                    counts[index] = counts.get(index, 0) + grown[first + index]

    def read(self, role: str, in_flight: int, max_gap_us: int) -> DigestStats:
        """Return the counters as they go to agentd."""
        spec = self.spec
        batched = spec.batching is not None
        return DigestStats(
            model=spec.model, version=spec.version, digest=spec.digest, role=role,
            requests=min(self.requests, _MOST), client_errors=min(self.client_errors, _MOST),
            server_errors=min(self.server_errors, _MOST), rejected=self.rejected,
            nonfinite=min(self.nonfinite, _MOST),
            replayed=self.replayed, crashes=self.crashes, in_flight=in_flight,
            memory_kb=self.memory_kb,
            latency=_bounded(self.latency), compute=_bounded(self.compute),
            max_gap_us=max_gap_us, accelerated_pct=self.accelerated_pct,
            latency_ns=min(self.latency_ns, _MOST), compute_ns=min(self.compute_ns, _MOST),
            failed_ns=min(self.failed_ns, _MOST),
            last_ms=self.last_ns // 1_000_000,
            executions=min(self.executions if batched else self.requests, _MOST),
            inferences=min(self.inferences if batched else self.requests, _MOST),
            batches={} if role == "released" else dict(self.batches),
        )  # fmt: skip


def _bounded(counts: Counts) -> Counts:
    return {index: min(count, _MOST) for index, count in counts.items()}
