"""Does a model answer rows that are joined as it answers them alone? Proved before it serves.

A declared first axis says that its size may vary, not that its rows are independent: what
normalises, sorts or quantises over all rows answers each request by what its neighbours have sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.ports import Session
from edgefleet_agent.worker import golden, rows
from edgefleet_agent.worker.calls import OUT_OF_MEMORY, run_checked, zeros
from edgefleet_agent.worker.golden import Case
from edgefleet_agent.worker.rows import Arrays
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.manifest import Batching, Golden


def prove(session: Session, order: Order, cases: Sequence[Case], batching: Batching) -> None:
    """Run one batch as large as may be, and compare each part of it with its own answer.

    It holds golden cases, and among them a row with other numbers. Where no golden case can be
    joined it is such rows whose answers must be the same alone and joined.

    Args:
        session: The model; it has answered `cases` alone.
        order: What is loaded.
        cases: Golden cases.
        batching: How large a batch may be.

    Raises:
        IncompatibleError: Rows are not independent, or cannot be joined (code `batch_mismatch`).
    """
    joinable = _joinable(cases, batching.max_batch_size - 1)
    if joinable:
        batch = _fill([*_others(session, order, joinable[0].inputs, 1), *joinable], batching)
    else:
        like = cases[0].inputs if cases else zeros(order)
        batch = _fill(_others(session, order, like, 2, known=True), batching)
    names = [tensor.name for tensor in order.spec.outputs]
    counts = [rows.shape_of(case.inputs).rows for case in batch]
    try:
        found = run_checked(session, order, rows.join([case.inputs for case in batch]))
        parts = list(rows.split(found, names, counts))
    except (RuntimeError, ValueError) as error:
        if any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise  # which is said by itself
        raise _refused(f"{sum(counts)} rows in one run fail: {error}") from error
    for index, (case, part) in enumerate(zip(batch, parts, strict=True)):
        try:
            golden.compare(index, part, case.outputs, order.spec.golden or Golden("", 0))
        except IncompatibleError as error:
            what = str(error).partition(": ")[2]
            raise _refused(
                f"part {index + 1} of {len(batch)} is answered otherwise than alone: {what}"
            ) from error


def _joinable(cases: Sequence[Case], most: int) -> list[Case]:
    """Return the cases that can be joined with the first such, none with more rows than `most`."""
    shapes = [rows.shape_of(case.inputs) for case in cases]
    keys = [shape.key for shape in shapes if shape.key is not None and shape.rows <= most]
    return [
        case
        for case, shape in zip(cases, shapes, strict=True)
        if keys and shape.key == keys[0] and shape.rows <= most
    ]


def _others(
    session: Session, order: Order, like: Arrays, count: int, *, known: bool = False
) -> list[Case]:
    """Return calls of one row with other numbers, and with their answers if `known`."""
    made = [_other(like, turn) for turn in range(1, count + 1)]
    try:
        answers = [run_checked(session, order, inputs) for inputs in made]
    except (RuntimeError, ValueError):  # such numbers mean nothing to it
        made = [{name: array[:1] for name, array in like.items()}]
        answers = [run_checked(session, order, inputs) for inputs in made]
    return [
        Case(inputs, answer if known else {}) for inputs, answer in zip(made, answers, strict=True)
    ]


def _other(like: Arrays, turn: int) -> dict[str, np.ndarray]:
    """Return one row of other numbers; what may be an index or a condition stays as it is."""
    made = {}
    for name, array in like.items():
        row = array[:1]
        if row.dtype.kind == "f" or (row.dtype.itemsize == 1 and row.dtype.kind in "iu"):
            wave = np.sin(np.arange(row.size) * 1.7 + turn).reshape(row.shape)
            row = (wave if row.dtype.kind == "f" else 50 + 50 * wave).astype(row.dtype)
        made[name] = row
    return made


def _fill(cases: Sequence[Case], batching: Batching) -> list[Case]:
    """Return the cases in turn, again and again, until a batch is full."""
    batch: list[Case] = []
    total = 0
    for case in cycle(cases):
        total += rows.shape_of(case.inputs).rows
        if total > batching.max_batch_size:
            break
        batch.append(case)
    return batch


def _refused(why: str) -> IncompatibleError:
    return IncompatibleError(
        f"The package says that it may be run in batches, and {why.rstrip('.')}.",
        code="batch_mismatch",
        hint="Publish it without batching.",
    )
