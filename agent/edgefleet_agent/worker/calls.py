"""Calls of a model by the worker itself: with zeros, and checked against the signature."""

from __future__ import annotations

import numpy as np

from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.ports import Session
from edgefleet_agent.worker import tensors
from edgefleet_agent.worker.codec import fits

OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "std::length_error", "errno 12")
"""What runtimes say of it."""


def zeros(order: Order) -> dict[str, np.ndarray]:
    """Return one input of zeros and empty texts; dimensions that vary are one."""
    made: dict[str, np.ndarray] = {}
    for tensor in order.spec.inputs:
        shape = [1 if size == -1 else size for size in tensor.shape]
        if tensor.datatype == "BYTES":
            made[tensor.name] = np.full(shape, "", object)
        else:
            made[tensor.name] = np.zeros(shape, tensors.DTYPES[tensor.datatype])
    return made


def run_checked(
    session: Session, order: Order, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run once and compare the outputs with the signature.

    Raises:
        ValueError: The model does not do what its signature says.
        RuntimeError: The runtime failed.
    """
    found = session.run(inputs)
    for tensor in order.spec.outputs:
        array = found.get(tensor.name)
        if not isinstance(array, np.ndarray):
            raise ValueError(  # noqa: TRY004 - the model is wrong, not a caller
                f"The model has no output tensor {tensor.name!r}; it has {', '.join(found)}."
            )
        if tensors.datatype(array) != tensor.datatype or not fits(list(array.shape), tensor):
            raise ValueError(
                f"Output {tensor.name!r} is {tensors.datatype(array)} {list(array.shape)}; the "
                f"package says {tensor.datatype} {tensor.shape}."
            )
    return found
