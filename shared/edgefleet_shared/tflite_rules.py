"""What a TFLite model may hold, for publisher and device alike. Pure.

A runtime follows a file's numbers without asking where they lead: into other files, past a buffer's
end, to a tensor that nothing has computed yet. Each rule here closes one such way; what kernels do
with sizes that only show when they run is the sandbox's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from edgefleet_shared.tflite_file import Graph, Model, ModelError, Operator, Tensor
from edgefleet_shared.tflite_schema import (
    CUSTOM,
    DELEGATE,
    ELEMENT_BITS,
    LAST_OPERATOR,
    PLACEHOLDER,
    POSITIVE,
    SCHEMA,
    STABLEHLO_CUSTOM_CALL,
)

CUSTOM_OPERATORS: Final = {
    "": frozenset({"TFLite_Detection_PostProcess"}),
    "npu": frozenset({"edgetpu-custom-op"}),
}
"""Custom operators that a model may use, by accelerator; '' is for every one.

The first is in both libraries' own set and only computes. The second is for the delegate that the
device's owner has configured: without it no runtime knows that operator.
"""

WITHOUT_SECOND: Final = frozenset({16, 44, 52})
"""Builtin operators whose second input may be left out: the LSTMs. Others read it unasked."""

MAX_PARTS: Final = 200_000
"""Tensors and operators of a file in all; runtimes allocate for each before they look at it."""


def allowed_custom(accelerator: str) -> frozenset[str]:
    """Return the custom operators that a model for this accelerator may use."""
    return CUSTOM_OPERATORS[""] | CUSTOM_OPERATORS.get(accelerator, frozenset())


def check(model: Model, *, max_bytes: int, custom: Collection[str]) -> Iterator[ModelError]:
    """Yield everything that forbids running a model.

    Args:
        model: The file, read.
        max_bytes: What one tensor may take.
        custom: Names of custom operators that are allowed.
    """
    yield from _files(model)
    parts = sum(len(graph.tensors) + len(graph.operators) for graph in model.graphs)
    if parts > MAX_PARTS:
        yield _broken(f"the model has {parts} tensors and operators, {MAX_PARTS} may be")
        return
    for graph in model.graphs:
        for tensor in graph.tensors:
            yield from _tensor(model, graph, tensor, max_bytes)
        for operator in graph.operators:
            yield from _operator(model, operator, custom)
        yield from _order(model, graph)
    yield from _calls(model)
    yield from _signatures(model)


def _files(model: Model) -> Iterator[ModelError]:
    """Nothing of a model lies in another file, nor beyond the end of its own."""
    groups = [group.get("name", "") for group in model.table.get("external_buffer_groups", [])]
    if groups or model.table.get("external_buffers", []):
        yield ModelError(
            f"The model keeps data in another file, {(groups or ['?'])[0][:80]!r}.",
            code="external_data_path",
            hint="Convert it into one file.",
        )
    for index, buffer in enumerate(model.buffers):
        offset, size = buffer.get("offset", 0), buffer.get("size", 0)
        inside = offset >= 8 and size and offset + size <= model.size
        if (offset or size) and (not inside or "data" in buffer.values):
            yield ModelError(
                f"Buffer {index} claims bytes {offset} to {offset + size} of {model.size}.",
                code="external_data_range",
                hint="The file is broken; convert the model again.",
            )
    used = [one.get("buffer", 0) for one in model.table.get("metadata", [])]
    for number in [*used, *model.table.get("metadata_buffer", ())]:
        if not 0 <= number < len(model.buffers):
            yield _broken(f"metadata is in buffer {number} of {len(model.buffers)}")


def _length(model: Model, tensor: Tensor) -> int:
    """Return the bytes of a tensor's data in the file, 0 if it is computed."""
    if tensor.buffer >= len(model.buffers):
        return 0
    buffer = model.buffers[tensor.buffer]
    return len(buffer.get("data", ())) or int(buffer.get("size", 0))


def _tensor(model: Model, graph: Graph, tensor: Tensor, max_bytes: int) -> Iterator[ModelError]:
    if tensor.table.get("external_buffer", 0):
        yield ModelError(
            f"{tensor.where} keeps its data in another file.",
            code="external_data_path",
            hint="Convert the model into one file.",
        )
    if tensor.buffer >= len(model.buffers):
        yield _broken(f"{tensor.where} is in buffer {tensor.buffer} of {len(model.buffers)}")
    if tensor.size > max_bytes:
        yield ModelError(
            f"{tensor.where} takes {tensor.size} bytes and may take {max_bytes}.",
            code="tensor_too_large",
            hint="Quantise or split it, or give the package more memory.",
        )
    length, sparse = _length(model, tensor), tensor.table.get("sparsity") is not None
    if length and ELEMENT_BITS[tensor.kind] and not sparse and length != tensor.size:
        yield ModelError(
            f"{tensor.where} does not fit its data: its shape needs {tensor.size} bytes, it has "
            f"{length}.",
            code="tensor_data",
            hint="The file is broken; convert the model again.",
        )
    if length and tensor.variable:
        yield _broken(f"{tensor.where} is constant and variable")
    yield from _quantization(graph, tensor)


def _quantization(graph: Graph, tensor: Tensor) -> Iterator[ModelError]:
    found = tensor.table.get("quantization")
    if found is None:
        return
    scales, zeros = len(found.get("scale", ())), len(found.get("zero_point", ()))
    axis = found.get("quantized_dimension", 0)
    if scales > 1 and (
        not 0 <= axis < len(tensor.shape)
        or tensor.shape[axis] != scales
        or zeros not in {0, scales}
    ):
        yield _broken(f"{tensor.where} has {scales} scales and {zeros} zero points on axis {axis}")
    details = found.get("details")
    for field in ("scales", "zero_points") if details else ():
        if not -1 <= details.get(field, 0) < len(graph.tensors):
            yield _broken(f"{tensor.where} has its {field} in a tensor that is not there")


def _operator(model: Model, operator: Operator, custom: Collection[str]) -> Iterator[ModelError]:
    code, name = operator.code, operator.custom
    if code == CUSTOM and name not in custom:
        flex = name.startswith("Flex")
        yield ModelError(
            f"{operator.where} is the custom operator {name[:80]!r}.",
            code="op_domain",
            hint="Flex operators need TensorFlow itself, which no device has: convert with builtin "
            "operators alone." if flex else "Devices load no custom operators.",
        )  # fmt: skip
    elif code in {DELEGATE, PLACEHOLDER, STABLEHLO_CUSTOM_CALL} or code > LAST_OPERATOR:
        yield ModelError(
            f"{operator.where} is the builtin operator {code}, unknown or not for files.",
            code="op_domain",
            hint="Convert it for the runtime that devices have, ai-edge-litert 2.",
        )
    if -1 in operator.inputs[: 1 if code in WITHOUT_SECOND else 2]:
        yield _broken(f"{operator.where} lacks an input that it reads")
    offset = operator.table.get("large_custom_options_offset", 0)
    if offset + operator.table.get("large_custom_options_size", 0) > model.size:
        yield ModelError(
            f"{operator.where} has options behind the end of the file.",
            code="external_data_range",
            hint="The file is broken; convert the model again.",
        )
    options = operator.table.get("builtin_options")
    for field in SCHEMA.tables[options.name] if options else ():
        if field.name.startswith(POSITIVE) and options.get(field.name, 0) < 1:
            yield _broken(f"{operator.where} would divide by {options.get(field.name, 0)}")


def _order(model: Model, graph: Graph) -> Iterator[ModelError]:
    """Every tensor is there before it is read, and none is written twice or over a constant."""
    constant = {
        index
        for index, tensor in enumerate(graph.tensors)
        if _length(model, tensor) or (not tensor.size and ELEMENT_BITS[tensor.kind])
    }
    ready = constant | set(graph.inputs)
    ready |= {index for index, tensor in enumerate(graph.tensors) if tensor.variable}
    written: set[int] = set(graph.inputs)
    for operator in graph.operators:
        for index in operator.inputs:
            if index >= 0 and index not in ready:
                yield _broken(
                    f"{operator.where} reads {graph.tensors[index].where}, which nothing has "
                    "computed before"
                )
        for index in operator.outputs:
            if index in written or (index in constant and _length(model, graph.tensors[index])):
                yield _broken(
                    f"{operator.where} writes {graph.tensors[index].where}, which is constant, an "
                    "input, or written before"
                )
            written.add(index)
        ready.update(operator.outputs)
    for index in graph.outputs:
        if index not in ready:
            yield _broken(f"{graph.where}output {graph.tensors[index].where} is never computed")


def _calls(model: Model) -> Iterator[ModelError]:
    """Subgraphs that are called are there, and none calls itself, by whatever way."""
    count = len(model.graphs)
    calls = [{one for operator in graph.operators for one in operator.subgraphs}
             for graph in model.graphs]  # fmt: skip
    lost = {one for called in calls for one in called if not 0 <= one < count}
    if lost:
        yield _broken(f"an operator calls subgraph {min(lost)} of {count}")
        return
    done: set[int] = set()
    while ready := {index for index in range(count) if index not in done and calls[index] <= done}:
        done |= ready
    if len(done) < count:
        yield _broken(f"subgraph {min(set(range(count)) - done)} calls itself")


def _signatures(model: Model) -> Iterator[ModelError]:
    for one in model.signatures:
        if one.graph >= len(model.graphs):
            yield _broken(f"signature {one.key[:80]!r} is of subgraph {one.graph}")
            continue
        graph = model.graphs[one.graph]
        if not set(one.inputs.values()) <= set(graph.inputs) or not set(
            one.outputs.values()
        ) <= set(graph.outputs):
            yield _broken(f"signature {one.key[:80]!r} names what is no input or output")


def _broken(what: str) -> ModelError:
    return ModelError(
        f"The model is broken: {what}.",
        code="invalid_model",
        hint="Convert the model again.",
    )
