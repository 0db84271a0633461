"""What the machine is: processor, memory, clock, and how fast its disk makes things last."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from edgefleet_agent.selftest.report import Row

FSYNCS: Final = 30
BLOCK: Final = bytes(4096)
SLOW_FSYNC_MS: Final = 250.0
"""A journal that needs longer for a line than this makes swaps of many seconds."""
LEAST_FREE_MB: Final = 64
EARLIEST: Final = 1767225600.0  # 2026-01-01: no certificate of a fleet is valid before


def facts(hardware: str) -> dict[str, Any]:
    """Return what the report says of the machine."""
    return {
        "hardware": hardware,
        "processor": _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or "?",
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": _system(),
        "kernel": platform.release(),
        "python": f"Python {platform.python_version()}",
        "memory_mb": _memory("MemTotal"),
        "load": round(os.getloadavg()[0], 2),
    }


def memory() -> Row:
    """Return how much memory is free for models."""
    free = _memory("MemAvailable")
    why = "" if free >= LEAST_FREE_MB else f"models need at least {LEAST_FREE_MB} MB"
    return Row(
        "machine", "memory", "failed" if why else "passed", why,
        {"available_mb": free, "total_mb": _memory("MemTotal")},
    )  # fmt: skip


def clock(now: float | None = None) -> Row:
    """Return whether the clock can be right, and whether somebody keeps it so."""
    now = time.time() if now is None else now
    synchronised = Path("/run/systemd/timesync/synchronized").exists()
    why = "" if now >= EARLIEST else "it is before 2026: no certificate would be valid"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return Row(
        "machine", "clock", "failed" if why else "passed", why,
        {"time": stamp, "synchronised": "yes" if synchronised else "not known"},
    )  # fmt: skip


def disk(state: Path) -> Row:
    """Measure small writes that must last, where the agent keeps its journal.

    Args:
        state: The state folder; where it is not there or not ours, the temporary folder is taken.
    """
    folder = state if os.access(state, os.W_OK) else Path(tempfile.gettempdir())
    times = []
    try:
        fd, name = tempfile.mkstemp(prefix=".selftest.", dir=folder)
        try:
            for _ in range(FSYNCS):
                begun = time.perf_counter()
                os.write(fd, BLOCK)
                os.fsync(fd)
                times.append(1000 * (time.perf_counter() - begun))
        finally:
            os.close(fd)
            Path(name).unlink()
        free = os.statvfs(folder)
    except OSError as error:
        return Row("machine", "disk", "failed", f"{folder}: {error.strerror or error}")
    median = sorted(times)[len(times) // 2]
    why = "" if median <= SLOW_FSYNC_MS else "swaps will take seconds on a disk that slow"
    return Row(
        "machine", "disk", "failed" if why else "passed", why,
        {
            "fsync_median_ms": round(median, 2), "fsync_worst_ms": round(max(times), 2),
            "free_mb": free.f_bavail * free.f_frsize // 2**20, "folder": str(folder),
        },
    )  # fmt: skip


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _cpuinfo(key: str) -> str:
    return _field(Path("/proc/cpuinfo"), key)


def _memory(key: str) -> int:
    text = _field(Path("/proc/meminfo"), key).split()
    return int(text[0]) // 1024 if text else 0


def _field(path: Path, key: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
