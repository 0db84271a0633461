"""Make, once on this device, the form of a model that loads fast and shares its weights.

Runs in a process that is thrown away, at idle priority, and may write two files alone. What it
makes answers as the package does, or is not used.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgefleet_agent.ipc.frames import Order, Report
from edgefleet_agent.ports import Accelerator, Preparing, Runtime
from edgefleet_agent.worker import compose, descriptors, golden, lint
from edgefleet_agent.worker.calls import run_checked, zeros
from edgefleet_agent.worker.opening import golden_cases, maker
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.package import Golden

SEED: Final = 20_260_101
WORTH_S: Final = 0.03
"""Processor seconds; a model that loads faster is left as it is."""
GAIN: Final = 0.75
"""A prepared form must load in less than this share of the package's time."""


def prepare(
    order: Order, files: Sequence[int], targets: Sequence[int], layers: Sequence[str]
) -> Report:
    """Make the form and compare it with the package; never raises for a bad model.

    Args:
        order: What to prepare.
        files: The package's descriptors.
        targets: Empty files to write into.
        layers: What this process is shut in by; without Landlock nothing is written.
    """
    if not any(layer.startswith("landlock") for layer in layers):
        return Report(ok=False, code="unconfined", message="There is no Landlock on this kernel.")
    try:
        return _prepare(order, files, targets)
    except EdgeFleetError as error:
        return Report(ok=False, code=error.code, message=str(error))
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        return Report(ok=False, code="prepare_failed", message=str(error) or type(error).__name__)


def _prepare(order: Order, files: Sequence[int], targets: Sequence[int]) -> Report:
    spec = order.spec
    files = files[: len(spec.files)]  # what follows is a way to the model
    accelerator, runtime = compose.accelerator(spec.accelerator), compose.runtime(spec.runtime)
    descriptors.check(spec, files, rehash=False)
    lint.check(spec, files)
    if accelerator.prepare(spec, files, targets):
        return Report(ok=True, maker=maker(runtime))
    if not isinstance(runtime, Preparing):
        return Report(ok=False, code="nothing_to_prepare")
    return _by_runtime(order, files, targets, accelerator, runtime)


def _by_runtime(
    order: Order,
    files: Sequence[int],
    targets: Sequence[int],
    accelerator: Accelerator,
    runtime: Runtime,
) -> Report:
    assert isinstance(runtime, Preparing)
    spec, providers = order.spec, accelerator.providers(order.spec)
    began = time.process_time()
    session = runtime.open(spec, files, providers)
    plain_s = time.process_time() - began
    if plain_s < WORTH_S:
        return Report(ok=False, code="does_not_pay", load_ms=int(plain_s * 1e3))
    cases = golden_cases(order, files)
    inputs = [case.inputs for case in cases] or [_seeded(order)]
    try:
        want = [run_checked(session, order, one) for one in inputs]
    except (RuntimeError, ValueError):
        inputs = [zeros(order)]  # random numbers mean nothing to it
        want = [run_checked(session, order, one) for one in inputs]
    del session
    gc.collect()  # one of them in memory at a time
    runtime.prepare(spec, files, providers, targets)
    gc.collect()
    began = time.process_time()
    session = runtime.open_prepared(spec, targets, providers)
    prepared_s = time.process_time() - began
    if prepared_s > GAIN * plain_s:
        return Report(ok=False, code="does_not_pay", load_ms=int(prepared_s * 1e3))
    tolerance = spec.golden or Golden("", 0)
    for index, one in enumerate(inputs):
        _same(index, run_checked(session, order, one), want[index], tolerance)
    return Report(ok=True, load_ms=int(prepared_s * 1e3), maker=maker(runtime))


def _same(
    index: int,
    found: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    tolerance: Golden,
) -> None:
    try:
        golden.compare(index, found, want, tolerance)
    except EdgeFleetError as error:
        raise EdgeFleetError(
            f"The prepared form answers otherwise. {error}", code="prepared_differs"
        ) from error


def _seeded(order: Order) -> dict[str, np.ndarray]:
    """Return inputs that are the same each time; what may be an index stays zero."""
    random, made = np.random.default_rng(SEED), zeros(order)
    for name, array in made.items():
        if array.dtype.kind == "f":
            made[name] = random.standard_normal(array.shape).astype(array.dtype)
        elif array.dtype in {np.dtype(np.uint8), np.dtype(np.int8)}:
            made[name] = random.integers(0, 100, array.shape).astype(array.dtype)
    return made
