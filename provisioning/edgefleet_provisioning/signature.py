"""A model's inputs and outputs in the words of the Open Inference Protocol v2. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, TensorProto, ValueInfoProto

from edgefleet_provisioning.errors import LintError
from edgefleet_shared.package import Datatype, TensorSpec

MAX_DIMENSION = 2**31 - 1

DATATYPES: dict[int, Datatype] = {
    TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32", TensorProto.UINT64: "UINT64", TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16", TensorProto.INT32: "INT32", TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16", TensorProto.FLOAT: "FP32", TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}  # fmt: skip


def signature(model: ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return inputs and outputs; -1 stands for a dimension that varies.

    Old models list initializers among their inputs; those are not asked for.

    Raises:
        LintError: There is none, or one that no client could send or read.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if not inputs:
        raise LintError(
            "The model has no input.",
            code="io_type",
            hint="A model that always gives the same answer needs no fleet.",
        )
    return _specs("input", inputs), _specs("output", model.graph.output)


def _specs(kind: str, values: Iterable[ValueInfoProto]) -> list[TensorSpec]:
    return [_spec(f"{kind} {value.name!r}", value) for value in values]


def _spec(where: str, value: ValueInfoProto) -> TensorSpec:
    which = value.type.WhichOneof("value")
    if which != "tensor_type":
        raise LintError(
            f"{where} is a {(which or 'value without type').removesuffix('_type')}, not a tensor.",
            code="io_type",
            hint="Export it as a tensor; with skl2onnx give options={'zipmap': False}.",
        )
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATATYPES:
        known = tensor.elem_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(tensor.elem_type) if known else tensor.elem_type
        raise LintError(
            f"{where} has the type {name}, which clients cannot send or read.",
            code="io_type",
            hint="Cast it inside the model, for example to FLOAT.",
        )
    if not tensor.HasField("shape"):
        raise LintError(
            f"{where} has no shape, not even the number of its dimensions.",
            code="io_type",
            hint="Run onnx.shape_inference, or export with shapes.",
        )
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    if any(not -1 <= size <= MAX_DIMENSION for size in shape):
        raise LintError(
            f"{where} has the shape {shape}.",
            code="tensor_dims",
            hint="The file is broken; export the model again.",
        )
    return TensorSpec(value.name, DATATYPES[tensor.elem_type], [-1 if s < 0 else s for s in shape])
