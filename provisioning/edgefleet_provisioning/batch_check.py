"""Before a variant is published that says `batching`: are its rows independent, here at least?

Devices prove the same once more, by the same golden vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from edgefleet_provisioning.arrays import DTYPES, Arrays
from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.golden import ATOL, RTOL, Case
from edgefleet_provisioning.runners import Run
from edgefleet_shared.batching_rules import check_batching
from edgefleet_shared.package import Batching, TensorSpec, Variant


def check(variant: Variant, run: Run, cases: Sequence[Case]) -> None:
    """Run golden cases joined along the first axis, and compare with what they are alone.

    Args:
        variant: What shall be published.
        run: The model, loaded.
        cases: Complete golden cases; without any, two rows of zeros must be two rows of answers.

    Raises:
        InvalidInputError: Its tensors say already that it cannot be (code `manifest_batching`).
        LintError: Rows cannot be joined, or depend on one another (code `batch_mismatch`).
    """
    check_batching(variant)
    if variant.batching is None:
        return
    batch = _fill(cases, variant.batching) or [Case(_zeros(variant.inputs), {})] * 2
    counts = [_rows(case) for case in batch]
    try:
        found = run(
            {
                spec.name: np.concatenate([case.inputs[spec.name] for case in batch])
                for spec in variant.inputs
            }
        )
    except Exception as error:  # runtimes' errors have no common root but this
        raise _refused(f"{sum(counts)} rows in one run fail: {str(error)[:300]}") from error
    for spec in variant.outputs:
        array = np.asarray(found[spec.name])
        if array.shape[:1] != (sum(counts),):
            raise _refused(
                f"output {spec.name!r} has the shape {list(array.shape)} for {sum(counts)} rows"
            )
        begin = 0
        for case, count in zip(batch, counts, strict=True):
            _compare(spec.name, array[begin : begin + count], case)
            begin += count


def _fill(cases: Sequence[Case], batching: Batching) -> list[Case]:
    """Return cases of the first one's shape, again and again, until a batch is full."""
    alike = [case for case in cases if _key(case) == _key(cases[0])]
    batch: list[Case] = []
    total = 0
    for case in cycle(alike):
        total += _rows(case)
        if total > max(batching.max_batch_size, 2 * _rows(alike[0])):
            break
        batch.append(case)
    return batch


def _key(case: Case) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, array.shape[1:]) for name, array in sorted(case.inputs.items())]


def _rows(case: Case) -> int:
    counts = {array.shape[0] for array in case.inputs.values()}
    if len(counts) > 1 or 0 in counts:
        raise _refused(f"the inputs of a golden case have {sorted(counts)} rows")
    return int(counts.pop())


def _zeros(inputs: Sequence[TensorSpec]) -> Arrays:
    made: Arrays = {}
    for spec in inputs:
        shape = [max(size, 1) for size in spec.shape]
        if spec.datatype == "BYTES":
            made[spec.name] = np.full(shape, "", object)
        else:
            made[spec.name] = np.zeros(shape, DTYPES[spec.datatype])
    return made


def _compare(name: str, got: np.ndarray, case: Case) -> None:
    want = case.outputs.get(name)
    if want is None:
        return
    if want.dtype.kind == "f":
        same = np.allclose(got, want, rtol=RTOL, atol=ATOL)
    else:
        same = np.array_equal(got, want)
    if not same:
        raise _refused(f"output {name!r} of a row depends on the rows that it is run with")


def _refused(why: str) -> LintError:
    return LintError(
        f"The model cannot be run in batches: {why}.",
        code="batch_mismatch",
        hint="Publish it without batching; or export it with rows that are independent.",
    )
