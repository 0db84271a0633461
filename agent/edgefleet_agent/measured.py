"""What loading a version has taken on this device: a small table, for predictions alone."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.ipc.control import ModelSpec, Outcome
from edgefleet_agent.journal import VersionRef
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

KEPT = 64
MAX_BYTES = 256 * 1024
PROCESS_KB = 24 * 1024
"""What a worker holds for itself before it has loaded anything."""
GROWTH = 4
"""A package that was never loaded here is taken to need so many times its files."""


class Cost(msgspec.Struct, frozen=True):
    """The most anonymous memory that a load took, and milliseconds until it could serve."""

    peak_kb: int
    ready_ms: int


class Table(msgspec.Struct, frozen=True):
    """Digest, variant and form to costs; under other software it starts anew."""

    format: Literal[1] = 1
    software: str = ""
    costs: dict[str, Cost] = {}


class Measured:
    """The table; safe to use from any thread. A lost table costs a worse prediction.

    Args:
        path: `<state_dir>/measured.json`.
        software: Agent and runtimes with their versions.
    """

    def __init__(self, path: Path, software: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._table = Table(software=software)
        with contextlib.suppress(InvalidInputError):
            if data := durable.read_bytes(path):
                table = strict_json.decode(data, Table, max_bytes=MAX_BYTES, what="measurements")
                if table.software == software:
                    self._table = table

    def note(self, version: VersionRef, outcome: Outcome) -> None:
        """Remember what a load, or a proof, took."""
        key = _key(version, prepared=outcome.prepared)
        cost = Cost(outcome.peak_kb, outcome.ready_ms)
        if not outcome.ok or not outcome.peak_kb:
            return
        with self._lock, contextlib.suppress(OSError):
            before = self._table.costs.get(key)
            if before and cost.peak_kb <= before.peak_kb <= 1.25 * cost.peak_kb:
                return  # nothing new; a write is worth more than that
            costs = {k: v for k, v in self._table.costs.items() if k != key}
            costs = dict([*list(costs.items())[1 - KEPT :], (key, cost)])
            table = Table(software=self._table.software, costs=costs)
            durable.atomic_write(self._path, strict_json.encode(table))
            self._table = table

    def cost(self, version: VersionRef, *, prepared: bool) -> Cost | None:
        """Return what was measured of a version, loaded so; None if it never was."""
        with self._lock:
            return self._table.costs.get(_key(version, prepared=prepared))

    def predict_kb(self, version: VersionRef, spec: ModelSpec, *, prepared: bool) -> int:
        """Return the memory that loading will take: as measured, or else by size and limit."""
        if cost := self.cost(version, prepared=prepared):
            return PROCESS_KB + cost.peak_kb
        guess = GROWTH * sum(file.size for file in spec.files) // 1024
        return PROCESS_KB + min(guess, spec.limits.memory_mb * 1024)


def _key(version: VersionRef, *, prepared: bool) -> str:
    return f"{version.digest} {version.variant} {'prepared' if prepared else 'plain'}"
