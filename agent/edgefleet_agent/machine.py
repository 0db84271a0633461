"""What this machine is, as one value and one fingerprint; reads no more than a few small files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from edgefleet_agent.ports import DeviceReport
from edgefleet_agent.providers import PROVIDERS
from edgefleet_agent.variants import Machine

DISTRIBUTIONS: Final = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-migraphx"),
    "litert": ("ai-edge-litert", "tflite-runtime"),
}
"""Runtime of a manifest to the distributions that bring it."""

PLUGINS: Final = ("onnxruntime-ep-openvino", "onnxruntime-ep-webgpu")


def describe(
    hardware: str, reports: Sequence[DeviceReport], cpuinfo: Path = Path("/proc/cpuinfo")
) -> Machine:
    """Return what models can run on here.

    Args:
        hardware: The id that packages name.
        reports: What probing the accelerators found.
        cpuinfo: Where the kernel describes the processor.
    """
    memory = next((r.memory_mb for r in reports if r.kind == "cpu"), 0)
    # Whether docker answers is asked when it is needed; a core needs no library.
    runtimes = {"container": "", "registers": "", **installed_runtimes()}
    return Machine(
        hardware=hardware,
        accelerators={r.kind: "" if r.usable else r.why_not for r in reports},
        runtimes=runtimes,
        memory_mb=memory,
        device_memory_mb={r.kind: r.memory_mb for r in reports if r.kind != "cpu"},
        ways={r.kind: _ways(r) for r in reports if r.usable and r.kind in {"gpu", "npu"}},
        fingerprint=fingerprint(reports, {**runtimes, **_versions(PLUGINS)}, cpuinfo),
    )


def _ways(report: DeviceReport) -> frozenset[str]:
    """Return the runtimes that reach an accelerator: by a provider of onnxruntime, a delegate."""
    known = {provider.name for provider in PROVIDERS}
    return frozenset("onnxruntime" if name in known else "litert" for name in report.providers)


def installed_runtimes() -> dict[str, str]:
    """Return runtime to version, by what pip wrote; nothing is imported."""
    found = {runtime: _versions(names) for runtime, names in DISTRIBUTIONS.items()}
    return {runtime: next(iter(there.values())) for runtime, there in found.items() if there}


def fingerprint(
    reports: Sequence[DeviceReport],
    software: Mapping[str, str],
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> str:
    """Return a digest that is another on another processor, driver, accelerator or runtime."""
    accelerators = sorted(
        (r.kind, r.name, r.driver, r.memory_mb, r.usable, r.providers) for r in reports
    )
    facts = [platform.machine(), *_processor(cpuinfo), accelerators, sorted(software.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _processor(cpuinfo: Path) -> list[str]:
    """Return the processor's names and flags, each once; frequencies and the like change hourly."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    kept = ("model name", "flags", "Features", "CPU part", "CPU implementer", "stepping")
    return sorted({line for line in lines if line.partition(":")[0].strip() in kept})


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
