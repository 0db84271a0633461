"""What a variant must be that says `batching`: its first axis counts rows, and nothing else."""

from __future__ import annotations

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.manifest import TensorSpec, Variant

MAX_BATCH_SIZE = 128
MAX_QUEUE_DELAY_MICROSECONDS = 1_000_000


def check_batching(variant: Variant) -> None:
    """Check that a variant can be run in batches.

    Raises:
        InvalidInputError: It cannot (code `manifest_batching`).
    """
    batching = variant.batching
    if batching is None:
        return
    if variant.runtime.name not in {"onnxruntime", "litert"}:
        raise _bad(
            variant,
            f"its runtime is {variant.runtime.name!r}",
            "A container batches by itself, if its server is told to; a core in an FPGA has a "
            "fixed shape.",
        )
    if not (
        2 <= batching.max_batch_size <= MAX_BATCH_SIZE
        and 0 <= batching.max_queue_delay_microseconds <= MAX_QUEUE_DELAY_MICROSECONDS
    ):
        raise _bad(
            variant,
            "its limits cannot be",
            f"max_batch_size 2 to {MAX_BATCH_SIZE}, max_queue_delay_microseconds 0 to "
            f"{MAX_QUEUE_DELAY_MICROSECONDS}.",
        )
    for kind, tensors in (("input", variant.inputs), ("output", variant.outputs)):
        for tensor in tensors:
            _check_axis(variant, kind, tensor)


def _check_axis(variant: Variant, kind: str, tensor: TensorSpec) -> None:
    if tensor.shape[:1] != [-1]:
        raise _bad(
            variant,
            f"its {kind} {tensor.name!r} has the shape {tensor.shape}, whose first axis does not "
            "vary",
            "Export the model with a dynamic first axis (-1) on every input and output, or leave "
            "batching out.",
        )


def _bad(variant: Variant, why: str, hint: str) -> InvalidInputError:
    return InvalidInputError(
        f"Variant {variant.id!r} cannot be run in batches: {why}.",
        code="manifest_batching",
        hint=hint,
    )
