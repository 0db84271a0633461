"""Every tensor and node of an ONNX model, wherever it hides. Pure.

Tensors lie in initializers, sparse initializers, node attributes, sub-graphs of control flow,
functions and training graphs; a check that forgets one of these is no check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # has no types
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from edgefleet_provisioning.errors import LintError

MAX_PROTOBUF_BYTES = 2**31 - 1
Constants = Mapping[str, TensorProto]


class FoundTensor(NamedTuple):
    """A tensor, in words where it stands, and whether it is a part of a sparse one."""

    where: str
    tensor: TensorProto
    sparse: bool


class FoundNode(NamedTuple):
    """A node, in words where it stands, the constants it can see, and its opsets by domain."""

    where: str
    node: NodeProto
    constants: Constants
    opsets: Mapping[str, int]


class Walk(NamedTuple):
    """Everything that was found in one model."""

    tensors: list[FoundTensor]
    nodes: list[FoundNode]


def parse(data: bytes, name: str) -> ModelProto:
    """Return the model in `data`, without loading anything that it points to.

    Raises:
        LintError: It is no ONNX model (code `not_a_model`).
    """
    why = ""
    model = ModelProto()
    if len(data) > MAX_PROTOBUF_BYTES:
        why = "it is over 2 GiB, more than protobuf can hold"
    else:
        try:
            model.ParseFromString(data)
        except (DecodeError, RecursionError):
            why = "it cannot be read as protobuf"
        else:
            if model.ir_version < 1 or not model.HasField("graph") or not model.graph.output:
                why = "it holds no graph with outputs"
            elif _has_foreign_text(model):
                why = "it holds a name that is not UTF-8"
    if why:
        raise LintError(
            f"{name} is not an ONNX model: {why}.",
            code="not_a_model",
            hint="Give a .onnx file as torch.onnx.export, skl2onnx or tf2onnx write it; weights "
            "over 2 GiB belong into an external data file beside it.",
        )
    return model


def _has_foreign_text(model: ModelProto) -> bool:
    """Tell whether a text is not UTF-8: protobuf then gives bytes, which nothing below expects."""
    stack: list[Any] = [model]
    while stack:
        for field, value in stack.pop().ListFields():
            if field.type not in {field.TYPE_STRING, field.TYPE_MESSAGE}:
                continue
            single = isinstance(value, str | bytes) or hasattr(value, "ListFields")
            values = [value] if single else value
            if field.type == field.TYPE_MESSAGE:
                stack.extend(values)
            elif any(isinstance(text, bytes) for text in values):
                return True
    return False


def domain_of(domain: str) -> str:
    """Return the domain's short name: the standard operators have two."""
    return "" if domain == "ai.onnx" else domain


def opsets_of(model: ModelProto | FunctionProto) -> dict[str, int]:
    """Return domain to opset version."""
    return {domain_of(entry.domain): entry.version for entry in model.opset_import}


def walk(model: ModelProto) -> Walk:
    """Return every tensor and node of a model."""
    found = Walk([], [])
    opsets = opsets_of(model)
    _graph(found, model.graph, "", {}, opsets)
    for index, training in enumerate(model.training_info):
        for part in (training.initialization, training.algorithm):
            _graph(found, part, f"training graph {index}, ", {}, opsets)
    for function in model.functions:
        where = f"function {function.name!r}, "
        own = opsets_of(function) or opsets
        _nodes(found, function.node, where, _constants(function.node), own)
        for attribute in function.attribute_proto:
            _attribute(found, attribute, where, {}, own)
    return found


def function_key(function: FunctionProto) -> tuple[str, str, str]:
    """Return what a node must name to call a function: domain, name, overload."""
    return domain_of(function.domain), function.name, function.overload


def called(node: NodeProto) -> tuple[str, str, str]:
    """Return what a node names: domain, operator or function, overload."""
    return domain_of(node.domain), node.op_type, node.overload


def title(node: NodeProto, index: int) -> str:
    """Return a node in words, findable in a viewer."""
    name = f"node {node.name!r}" if node.name else f"node #{index}"
    return f"{name} ({node.op_type})"


def _graph(
    found: Walk, graph: GraphProto, where: str, outer: Constants, opsets: Mapping[str, int]
) -> None:
    for tensor in graph.initializer:
        found.tensors.append(FoundTensor(f"{where}initializer {tensor.name!r}", tensor, False))
    for sparse in graph.sparse_initializer:
        name = f"{where}sparse initializer {sparse.values.name!r}"
        found.tensors.append(FoundTensor(name, sparse.values, True))
        found.tensors.append(FoundTensor(f"{name} (indices)", sparse.indices, True))
    constants = {
        **outer,
        **{tensor.name: tensor for tensor in graph.initializer},
        **_constants(graph.node),
    }
    _nodes(found, graph.node, where, constants, opsets)


def _nodes(
    found: Walk,
    nodes: Iterator[NodeProto],
    where: str,
    constants: Constants,
    opsets: Mapping[str, int],
) -> None:
    for index, node in enumerate(nodes):
        here = f"{where}{title(node, index)}"
        found.nodes.append(FoundNode(here, node, constants, opsets))
        for attribute in node.attribute:
            _attribute(found, attribute, f"{here}, ", constants, opsets)


def _attribute(
    found: Walk,
    attribute: AttributeProto,
    where: str,
    constants: Constants,
    opsets: Mapping[str, int],
) -> None:
    """Walk what an attribute holds; its declared type is not believed, all fields are looked at."""
    here = f"{where}attribute {attribute.name!r}"
    tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
    found.tensors.extend(FoundTensor(here, tensor, False) for tensor in tensors)
    sparse = [
        *attribute.sparse_tensors,
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
    ]
    for entry in sparse:
        found.tensors.append(FoundTensor(f"{here} (values)", entry.values, True))
        found.tensors.append(FoundTensor(f"{here} (indices)", entry.indices, True))
    graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    for graph in graphs:
        _graph(found, graph, f"{here}, ", constants, opsets)


def _constants(nodes: Iterator[NodeProto]) -> dict[str, TensorProto]:
    """Return the tensors that Constant nodes give, by the name of their output."""
    return {
        node.output[0]: attribute.t
        for node in nodes
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value" and attribute.HasField("t")
    }
