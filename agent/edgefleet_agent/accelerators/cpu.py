"""The processor that is always there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import DeviceReport


class Cpu:
    """Runs any model of accelerator `cpu`; slots cost nothing and there is one a digest."""

    kind = "cpu"

    def __init__(self) -> None:
        self._slots: set[str] = set()

    def probe(self) -> DeviceReport:
        """Report the processor's name and the machine's memory; always usable."""
        return DeviceReport(
            name=_model_name() or platform.machine(),
            kind=self.kind,
            usable=True,
            memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            detail={"cores": cores(), "machine": platform.machine()},
        )

    def compatible(self, spec: ModelSpec) -> str:
        """Return '' for a model of accelerator `cpu`."""
        if spec.accelerator == self.kind:
            return ""
        return f"{spec.model} {spec.version} is built for {spec.accelerator!r}, this is a CPU."

    def providers(self, spec: ModelSpec) -> Mapping[str, Mapping[str, str]]:
        """Return the CPU provider; what else a package names is for other accelerators."""
        del spec
        return {"CPUExecutionProvider": {}}

    def prepare(self, spec: ModelSpec, files: Sequence[int], targets: Sequence[int]) -> bool:
        """Return False: a processor needs nothing beyond what the runtime makes for it."""
        del spec, files, targets
        return False

    def reserve(self, spec: ModelSpec) -> str:
        """Return the slot, which is named after the digest."""
        self._slots.add(spec.digest)
        return spec.digest

    def program(self, slot: str, spec: ModelSpec, files: Sequence[int]) -> None:
        """Do nothing: there is nothing to program."""

    def release(self, slot: str) -> None:
        """Forget the slot."""
        self._slots.discard(slot)

    def state(self, slot: str) -> str:
        """Return `operating` for a reserved slot, else `free`."""
        return "operating" if slot in self._slots else "free"


def cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may use: of its cpuset, less by its cgroup's quota.

    Args:
        root: Where cgroup v2 is.
        own: Which cgroup this process is in.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        name = own.read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return allowed
    folder = root / name
    while folder != root.parent:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota, period = "max", "1"
        if quota.isdecimal() and period.isdecimal() and int(period):
            allowed = min(allowed, max(1, int(quota) // int(period)))
        folder = folder.parent
    return allowed


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
