"""Metrics in Prometheus' text format 0.0.4, in base units; Triton's names beside them on demand.

Written by hand: the format is a line a number, and a library would be the gateway's largest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from edgefleet_agent import __version__
from edgefleet_agent.gateway.backend import Backend
from edgefleet_agent.gateway.plane import Plane
from edgefleet_agent.gateway.statistics import queued_ns
from edgefleet_agent.ipc.control import DigestStats
from edgefleet_shared.histogram import EDGES_NS

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_STEP: Final = 4  # every fourth edge, which doubles
_EDGES: Final = [(i, f"{EDGES_NS[i] / 1e9:g}") for i in range(0, len(EDGES_NS), _STEP)]

Labels = dict[str, str]
Sample = tuple[Labels, float]


class Page:
    """Collects families, each with its help, type and samples."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        """Add a family of a counter (whose name ends as it shall be read) or a gauge."""
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{_braces(labels)} {_number(value)}" for labels, value in samples]

    def histogram(
        self, name: str, text: str, found: Iterable[tuple[Labels, Mapping[int, int], int]]
    ) -> None:
        """Add a histogram of seconds: labels, counts by `histogram`'s buckets, sum in ns."""
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for labels, counts, total_ns in found:
            filled, at, seen = sorted(counts), 0, 0
            for index, edge in _EDGES:
                while at < len(filled) and filled[at] <= index:
                    seen += counts[filled[at]]
                    at += 1
                self._lines.append(f"{name}_bucket{_braces({**labels, 'le': edge})} {seen}")
            whole = sum(counts.values())
            self._lines.append(f"{name}_bucket{_braces({**labels, 'le': '+Inf'})} {whole}")
            self._lines.append(f"{name}_sum{_braces(labels)} {_number(total_ns / 1e9)}")
            self._lines.append(f"{name}_count{_braces(labels)} {whole}")

    def text(self) -> bytes:
        """Return the page."""
        return "\n".join([*self._lines, ""]).encode()


def render(plane: Plane, connections: int, *, triton: bool) -> bytes:
    """Return everything that is counted.

    Args:
        plane: What is loaded and routed.
        connections: Clients that are connected.
        triton: Add the names by which Triton's dashboards look.
    """
    page, found = Page(), _newest(plane.stats(restart_gaps=False))
    _requests(page, found)
    _workers(page, plane, found)
    page.family("edgefleet_gateway_connections", "gauge", "Clients connected.", [({}, connections)])
    page.family(
        "edgefleet_build_info", "gauge", "Version of the agent.", [({"version": __version__}, 1)]
    )
    if triton:
        _triton(page, plane, found)
    return page.text()


def _newest(found: Iterable[DigestStats]) -> list[DigestStats]:
    """Return one entry a model and version: the loaded one, if an older digest had the same."""
    chosen: dict[tuple[str, str], DigestStats] = {}
    for stats in found:
        key = (stats.model, stats.version)
        if key not in chosen or chosen[key].role == "released":
            chosen[key] = stats
    return list(chosen.values())


def _labels(stats: DigestStats) -> Labels:
    return {"model": stats.model, "version": stats.version}


def _requests(page: Page, found: list[DigestStats]) -> None:
    outcomes = {
        "ok": "requests", "client_error": "client_errors",
        "server_error": "server_errors", "rejected": "rejected",
    }  # fmt: skip
    page.family(
        "edgefleet_inference_requests_total", "counter",
        "Requests by how they were answered: 200, 4xx, 5xx, 503.",
        [
            ({**_labels(s), "outcome": outcome}, getattr(s, field))
            for s in found for outcome, field in outcomes.items()
        ],
    )  # fmt: skip
    page.histogram(
        "edgefleet_inference_duration_seconds", "Whole requests answered 200, in the gateway.",
        [(_labels(s), s.latency, s.latency_ns) for s in found],
    )  # fmt: skip
    page.histogram(
        "edgefleet_inference_compute_seconds", "The worker's runs of them.",
        [(_labels(s), s.compute, s.compute_ns) for s in found],
    )  # fmt: skip
    page.family(
        "edgefleet_inference_queue_seconds_total", "counter",
        "Their time in which no worker ran: waiting, and the way.",
        [(_labels(s), queued_ns(s) / 1e9) for s in found],
    )  # fmt: skip
    for name, field, text in (
        ("runs", "executions", "Runs of the model, each for one request or a batch."),
        ("nonfinite", "nonfinite", "Answers from a model that gave NaN or infinity."),
        ("replayed", "replayed", "Requests asked again after a worker had died."),
    ):
        samples = [(_labels(s), getattr(s, field)) for s in found]
        page.family(f"edgefleet_inference_{name}_total", "counter", text, samples)


def _workers(page: Page, plane: Plane, found: list[DigestStats]) -> None:
    loaded = [s for s in found if s.role != "released"]
    page.family(
        "edgefleet_inference_in_flight", "gauge", "Requests that a worker has.",
        [(_labels(s), s.in_flight) for s in loaded],
    )  # fmt: skip
    page.family(
        "edgefleet_inference_waiting", "gauge", "Requests taken while no worker was there.",
        [({"model": r.model}, len(r.waiting)) for r in plane.router.routes.values()],
    )  # fmt: skip
    page.family(
        "edgefleet_worker_memory_bytes", "gauge", "Private memory of a worker once it was loaded.",
        [(_labels(s), s.memory_kb * 1024) for s in loaded],
    )  # fmt: skip
    page.family(
        "edgefleet_worker_up", "gauge", "1 if the worker is there and not quarantined.",
        [
            ({"model": b.spec.model, "version": b.spec.version, "role": plane.role(b)}, _up(b))
            for b in plane.backends.values()
        ],
    )  # fmt: skip
    page.family(
        "edgefleet_worker_crashes_total", "counter", "Deaths of workers, failed restarts too.",
        [(_labels(s), s.crashes) for s in found],
    )  # fmt: skip
    page.family(
        "edgefleet_swaps_total", "counter", "Times that a model's route moved to another version.",
        [({"model": r.model}, r.swaps) for r in plane.router.routes.values()],
    )  # fmt: skip
    page.family(
        "edgefleet_model_info", "gauge", "What is loaded.",
        [
            ({**_labels(s), "digest": s.digest, "role": s.role}, 1) for s in loaded
        ],
    )  # fmt: skip


def _up(backend: Backend) -> int:
    return int(backend.ready and not backend.quarantined)


def _triton(page: Page, plane: Plane, found: list[DigestStats]) -> None:
    """Add Triton's counters, with its labels and units."""
    counters: dict[str, tuple[str, Callable[[DigestStats], int]]] = {
        "nv_inference_request_success": ("Requests answered.", lambda s: s.requests),
        "nv_inference_count": ("Inferences done.", lambda s: s.inferences),
        "nv_inference_exec_count": ("Runs of the model.", lambda s: s.executions),
        "nv_inference_request_duration_us": ("Whole requests.", lambda s: s.latency_ns // 1000),
        "nv_inference_queue_duration_us": ("Waiting.", lambda s: queued_ns(s) // 1000),
        "nv_inference_compute_infer_duration_us": ("Running.", lambda s: s.compute_ns // 1000),
    }
    for name, (text, value) in counters.items():
        page.family(name, "counter", text, [(_labels(s), value(s)) for s in found])
    reasons = {"REJECTED": "rejected", "BACKEND": "server_errors", "OTHER": "client_errors"}
    page.family(
        "nv_inference_request_failure", "counter", "Requests that failed.",
        [
            ({**_labels(s), "reason": reason}, getattr(s, field))
            for s in found for reason, field in reasons.items()
        ],
    )  # fmt: skip
    waiting = {r.active.digest: len(r.waiting) for r in plane.router.routes.values()}
    page.family(
        "nv_inference_pending_request_count", "gauge", "Requests that wait for a run.",
        [
            (_labels(s), waiting.get(s.digest, 0) + max(0, s.in_flight - 1))
            for s in found if s.role != "released"
        ],
    )  # fmt: skip


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items()) + "}" if labels else ""


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(value)
