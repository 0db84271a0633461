"""What agentd is answered: outcomes of loads, proofs and refusals."""

from __future__ import annotations

from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.ipc.control import Outcome
from edgefleet_agent.ipc.frames import Report


def outcome_of(number: int, report: Report, pid: int) -> Outcome:
    """Return what a worker's report means to agentd."""
    return Outcome(
        number, report.ok, report.code, report.message, report.load_ms, report.golden_ms,
        report.ready_ms, report.memory_kb, pid, report.sandbox, report.accelerated_pct,
        report.median_us, report.peak_kb, report.prepared, report.note, report.maker,
    )  # fmt: skip


def already(backend: Backend | None) -> Report:
    """Return the report of a digest that is loaded already."""
    if backend is None:
        return Report(ok=True)
    counters = backend.counters
    return Report(ok=True, memory_kb=counters.memory_kb, accelerated_pct=counters.accelerated_pct)


def refused(number: int, code: str, message: str) -> Outcome:
    """Return a negative outcome."""
    return Outcome(number, ok=False, code=code, message=message)
