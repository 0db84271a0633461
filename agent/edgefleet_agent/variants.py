"""Which variants of a package this machine can run, and which of those that were measured is best.

Pure: a manifest and facts in, an order with its reasons out. The order of what was measured:

1. it loads within its limits and answers its golden vectors within their tolerances;
2. it keeps its word: at least half of its nodes run on the accelerator that it names;
3. the lowest median time of a run, where a tenth more is equal, so that noise decides nothing;
4. the least memory, where a twentieth more is equal;
5. the order of the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.onnx_rules import MAX_OPSETS
from edgefleet_shared.package import Manifest, Variant, fitting_variants

LEAST_SHARE = 50
LATENCY_MARGIN, MEMORY_MARGIN = 1.10, 1.05
REASON_CHARACTERS = 300


class Machine(msgspec.Struct, frozen=True):
    """What a device can run models on.

    Attributes:
        hardware: The id that packages name.
        accelerators: Kind to why it is not usable, '' if it is.
        runtimes: Name to version of those that are installed; '' where nobody tells.
        ways: Kind to the runtimes that a model has run on it by, where that is not all of them.
        memory_mb: The machine's memory.
        device_memory_mb: Kind to the accelerator's own memory, where it has any.
        fingerprint: Processor, accelerators with drivers, and runtimes, as one digest: measured on
            one machine, nothing is true on another.
    """

    hardware: str
    accelerators: Mapping[str, str]
    runtimes: Mapping[str, str]
    memory_mb: int
    device_memory_mb: Mapping[str, int] = {}
    ways: Mapping[str, frozenset[str]] = {}
    fingerprint: str = ""

    @property
    def usable(self) -> frozenset[str]:
        """The kinds of the accelerators that are usable."""
        return frozenset(kind for kind, why_not in self.accelerators.items() if not why_not)

    @property
    def unavailable(self) -> dict[str, str]:
        """Why each of the other kinds is not usable."""
        return {kind: why_not for kind, why_not in self.accelerators.items() if why_not}


class Measured(msgspec.Struct, frozen=True):
    """What one candidate's proof found; `code` is '' if it passed. Times: us and ms, memory: kB."""

    variant: str
    accelerator: str
    code: str = ""
    message: str = ""
    median_us: int = 0
    memory_kb: int = 0
    load_ms: int = 0
    accelerated_pct: int = -1


def candidates(manifest: Manifest, machine: Machine) -> tuple[list[Variant], dict[str, str]]:
    """Return what could run here in the manifest's order, and why each of the others cannot.

    Raises:
        InvalidInputError: None can (`no_compatible_variant`), or several fit and one of them has no
            golden vectors to be measured by (`ambiguous_variant`).
    """
    refused = {v.id: why for v in manifest.variants if (why := why_unfit(v, machine))}
    able = [v for v in manifest.variants if v.id not in refused]
    try:
        found = fitting_variants(manifest, able, machine.hardware)
    except InvalidInputError as error:
        error.hint = " ".join(f"{name}: {why}" for name, why in refused.items()) or error.hint
        raise
    for variant in able:
        if variant not in found:
            refused[variant.id] = f"it is for {' '.join(variant.hardware)}."
    return found, refused


def why_unfit(variant: Variant, machine: Machine) -> str:
    """Return '' if a variant could run on a machine, whatever hardware it names; else why not."""
    kind, need = variant.accelerator, variant.runtime
    if kind not in machine.accelerators:
        return f"this agent knows no accelerator {kind}."
    if why_not := machine.accelerators[kind]:
        return f"{kind} is not usable: {why_not}"
    if need.name not in machine.runtimes:
        return f"the runtime {need.name} is not installed."
    if kind in machine.ways and need.name not in machine.ways[kind]:
        return f"no {need.name} model has run on the {kind} here."
    installed = machine.runtimes[need.name]
    if need.min_version and installed and _numbers(installed) < _numbers(need.min_version):
        return f"it needs {need.name} {need.min_version}, here is {installed}."
    newer = [d for d, opset in need.opsets.items() if opset > MAX_OPSETS.get(d, opset)]
    if need.name == "onnxruntime" and newer:
        return f"its operators of {min(newer) or 'ai.onnx'} are newer than a device loads."
    limits = variant.limits
    if machine.memory_mb and limits.memory_mb > machine.memory_mb:
        return f"it may take {limits.memory_mb} MB, and the machine has {machine.memory_mb}."
    there = machine.device_memory_mb.get(kind, 0)
    if there and limits.device_memory_mb > there:
        return f"it takes {limits.device_memory_mb} MB of the {kind}'s memory of {there}."
    return ""


def rank(measured: Sequence[Measured]) -> list[Measured]:
    """Return those that passed, the best first, by the order that this module names.

    Args:
        measured: In the manifest's order.
    """
    left, order = [m for m in measured if not m.code], list[Measured]()
    while left:
        best = _best(left)
        order.append(best)
        left.remove(best)
    return order


def _best(pool: Sequence[Measured]) -> Measured:
    pool = [m for m in pool if m.accelerated_pct < 0 or m.accelerated_pct >= LEAST_SHARE] or pool
    fastest = min(m.median_us for m in pool)
    pool = [m for m in pool if m.median_us <= fastest * LATENCY_MARGIN]
    lightest = min(m.memory_kb for m in pool)
    return next(m for m in pool if m.memory_kb <= lightest * MEMORY_MARGIN)


def reason(order: Sequence[Measured], measured: Sequence[Measured]) -> str:
    """Say in one line why the first was taken, with the numbers of all."""
    if not order:
        return "None of the variants passed its proof."
    best, rest = order[0], [m for m in measured if m.variant != order[0].variant]
    text = f"{_said(best)} is best of {len(measured)}: " + "; ".join(map(_said, rest)) + "."
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def _said(one: Measured) -> str:
    if one.code:
        return f"{one.variant} failed ({one.code})"
    share = f", {one.accelerated_pct} % on the {one.accelerator}" * (one.accelerated_pct >= 0)
    return f"{one.variant} ({one.median_us / 1000:.3g} ms, {one.memory_kb // 1024} MB{share})"


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 1.31.1 -> (1, 31, 1)."""
    found: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
