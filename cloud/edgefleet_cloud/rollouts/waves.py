"""Who is in which wave: frozen when the rollout is made, by a seeded hash. Pure.

Named canary devices come first in their own waves. All others are put in one order that no operator
chose: by a hash of the rollout's seed and the device's id, each hardware class spread evenly, so
that a wave of ten percent holds about ten percent of each class.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgefleet_shared.errors import InvalidInputError


@dataclass(frozen=True)
class WaveSpec:
    """One wave as asked for; exactly one of the four ways of choosing is set."""

    name: str
    devices: tuple[str, ...] | None = None
    count: int | None = None
    percent: float | None = None
    rest: bool = False


def split(
    specs: Sequence[WaveSpec], targets: Mapping[str, str], seed: str
) -> list[tuple[str, ...]]:
    """Return the devices of each wave, in the order of `specs`.

    Args:
        specs: The waves asked for.
        targets: Hardware class by device id, of every device that the rollout is for.
        seed: Freezes the order; the rollout's id.

    Raises:
        InvalidInputError: code `waves`: a name or a device stands twice, a named device is not a
            target, or targets are left over.
    """
    _check(specs, targets)
    named = {device for spec in specs for device in spec.devices or ()}
    queue = [device for device in _ordered(targets, seed) if device not in named]
    members: list[tuple[str, ...]] = []
    for spec in specs:
        if spec.devices is not None:
            members.append(tuple(spec.devices))
            continue
        take = len(queue) if spec.rest else _wanted(spec, len(targets))
        members.append(tuple(queue[:take]))
        queue = queue[take:]
    if queue:
        raise InvalidInputError(
            f"{len(queue)} devices are in no wave, {queue[0]!r} among them.",
            code="waves",
            hint='End with a wave {"name": "rest", "rest": true}, or narrow the selector.',
        )
    return members


def _wanted(spec: WaveSpec, total: int) -> int:
    if spec.count is not None:
        return spec.count
    return max(1, math.ceil(total * (spec.percent or 0) / 100))


def _ordered(targets: Mapping[str, str], seed: str) -> list[str]:
    """Order devices by hash, each hardware class spread evenly over the whole."""
    classes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for device, hardware in targets.items():
        digest = hashlib.sha256(f"{seed}\0{device}".encode()).hexdigest()
        classes[hardware].append((digest, device))
    placed = [
        ((rank + 0.5) / len(ranked), digest, device)
        for ranked in map(sorted, classes.values())
        for rank, (digest, device) in enumerate(ranked)
    ]
    return [device for _, _, device in sorted(placed)]


def _check(specs: Sequence[WaveSpec], targets: Mapping[str, str]) -> None:
    if not specs:
        raise InvalidInputError("A rollout needs at least one wave.", code="waves")
    names: set[str] = set()
    home: dict[str, str] = {}
    for position, spec in enumerate(specs):
        if spec.name in names:
            raise InvalidInputError(
                f"Two waves are named {spec.name!r}.", code="waves", hint="Name each wave once."
            )
        names.add(spec.name)
        if spec.rest and position != len(specs) - 1:
            raise InvalidInputError(
                f"Wave {spec.name!r} takes the rest, so nothing is left for the next one.",
                code="waves",
                hint="Put the wave with rest at the end.",
            )
        for device in spec.devices or ():
            _check_named(spec.name, device, home, targets)


def _check_named(wave: str, device: str, home: dict[str, str], targets: Mapping[str, str]) -> None:
    if device in home:
        raise InvalidInputError(
            f"Device {device!r} is in wave {home[device]!r} and in wave {wave!r}.",
            code="waves",
            hint="Name a device once.",
        )
    if device not in targets:
        raise InvalidInputError(
            f"Device {device!r} of wave {wave!r} is not among the rollout's devices.",
            code="waves",
            hint="Correct the id, or widen the selector, group or list of devices.",
        )
    home[device] = wave
