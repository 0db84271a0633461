"""Lint of what nodes do: domains, operators, opsets, functions, constants that ask for too much.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.lint_tensors import BITS
from edgefleet_provisioning.onnx_walk import FoundNode, called, domain_of, function_key, opsets_of
from edgefleet_shared.onnx_rules import CONTRIB, MAX_OPSETS

MIN_RUNTIME = "1.27.0"
MAX_IR = 13
MAX_NODES_INLINED = 1_000_000
MAX_TRIPS = 10**9

# Input that is a whole shape, by operator.
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1}
_SHAPE_ATTRIBUTE = {"RandomNormal", "RandomUniform"}


def check_opsets(model: ModelProto) -> None:
    """Check that the runtime knows the model's format and operator sets.

    Raises:
        LintError: It is too new.
    """
    if model.ir_version > MAX_IR:
        raise _too_new(f"The model's IR version is {model.ir_version}", MAX_IR)
    for source in (model, *model.functions):
        for domain, version in opsets_of(source).items():
            limit = MAX_OPSETS.get(domain, version)
            if not 1 <= version <= limit:
                raise _too_new(f"The model's opset of {domain or 'ai.onnx'!r} is {version}", limit)


def check_functions(model: ModelProto) -> None:
    """Check that functions hide no operator, do not call themselves, and stay small when inlined.

    Raises:
        LintError: Naming the function.
    """
    bodies = {function_key(f): [called(node) for node in f.node] for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(key: tuple[str, str, str], path: tuple[tuple[str, str, str], ...]) -> int:
        if key in path:
            raise _function_error(key, "calls itself")
        if key not in sizes:
            if len(path) > 64:
                raise _function_error(key, "is nested over 64 calls deep")
            below = (*path, key)
            sizes[key] = sum(size(c, below) if c in bodies else 1 for c in bodies[key])
        return sizes[key]

    for key in bodies:
        if key[0] in MAX_OPSETS:
            raise _function_error(key, "has the domain of the runtime's own operators")
        if size(key, ()) > MAX_NODES_INLINED:
            raise _function_error(key, f"has over {MAX_NODES_INLINED} nodes when inlined")


def check_node(found: FoundNode, functions: frozenset[tuple[str, str, str]], limit: int) -> None:
    """Check one node.

    Args:
        found: The node.
        functions: Keys of the model's own functions.
        limit: Bytes that one constant-sized result may take.

    Raises:
        LintError: It names the node and says what to do.
    """
    if called(found.node) not in functions:
        _check_operator(found)
        _check_size(found, limit)


def _check_operator(found: FoundNode) -> None:
    domain, operator = domain_of(found.node.domain), found.node.op_type
    if domain not in MAX_OPSETS:
        raise LintError(
            f"{found.where} uses the operator domain {domain[:80]!r}.",
            code="op_domain",
            hint="Devices load no custom operators; express it with standard ONNX operators or a "
            "function inside the model.",
        )
    if domain == "com.microsoft":
        if operator not in CONTRIB:
            raise LintError(
                f"{found.where} uses com.microsoft.{operator[:80]}, which is not allowed.",
                code="op_domain",
                hint="Only contributed operators that purely compute are allowed; export without "
                "runtime-specific optimisation.",
            )
        return
    version = found.opsets.get(domain)
    if version is None:
        raise LintError(
            f"{found.where} uses {domain or 'ai.onnx'!r}, for which the model imports no opset.",
            code="opset_missing",
            hint="The file is broken; export the model again.",
        )
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        raise _unknown(found, domain, version) from None
    if schema.deprecated:
        raise _unknown(found, domain, version)


def _check_size(found: FoundNode, limit: int) -> None:
    """Refuse results whose size is a constant of the model, and absurd."""
    node = found.node
    shape: list[int] | None = None
    if node.op_type in _SHAPE_INPUT and len(node.input) > _SHAPE_INPUT[node.op_type]:
        shape = _integers(node.input[_SHAPE_INPUT[node.op_type]], found.constants)
    elif node.op_type in _SHAPE_ATTRIBUTE:
        shape = next((list(a.ints) for a in node.attribute if a.name == "shape"), None)
    elif node.op_type == "Range" and len(node.input) == 3:
        shape = _range_length(found)
    elif node.op_type == "OneHot" and len(node.input) == 3:
        shape = _integers(node.input[1], found.constants)
    elif node.op_type == "Loop" and node.input:
        trips = _integers(node.input[0], found.constants)
        if trips and trips[0] > MAX_TRIPS:
            raise _absurd(found, f"runs its body {trips[0]} times")
    if shape is None:
        return
    size = math.prod(shape) * _result_bits(found) // 8
    if min(shape, default=0) < 0 or size > limit:
        raise _absurd(found, f"makes a tensor of shape {shape}, {size} bytes (limit {limit})")


def _range_length(found: FoundNode) -> list[int] | None:
    values = [_integers(name, found.constants) for name in found.node.input]
    if any(not value for value in values):
        return None
    start, stop, step = (value[0] for value in values if value)
    return [max(0, -(-(stop - start) // step))] if step else None


def _result_bits(found: FoundNode) -> int:
    """Return the bits of an element of the result; 32 unless the node says otherwise."""
    for attribute in found.node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return BITS.get(attribute.t.data_type, 32)
        if attribute.name == "dtype":
            return BITS.get(attribute.i, 32)
    return 32


def _integers(name: str, constants: Mapping[str, TensorProto]) -> list[int] | None:
    """Return the values of a small constant, None if it is not known before the model runs."""
    tensor = constants.get(name)
    if tensor is None or tensor.external_data or math.prod(tensor.dims) > 64:
        return None
    try:
        return [int(value) for value in numpy_helper.to_array(tensor).ravel()]
    except (ValueError, TypeError, OverflowError):
        return None  # the tensor's own check says what is wrong with it


def _unknown(found: FoundNode, domain: str, version: int) -> LintError:
    known = onnx.defs.has(found.node.op_type, domain)
    return LintError(
        f"{found.where} uses an operator that opset {version} of {domain or 'ai.onnx'!r} does not "
        "have.",
        code="unknown_op",
        hint="Export the model for the opset that has it."
        if known
        else "Check its spelling; devices load no custom operators.",
    )


def _too_new(what: str, limit: int) -> LintError:
    return LintError(
        f"{what}; devices (onnxruntime {MIN_RUNTIME}) load 1 to {limit}.",
        code="opset_too_new",
        hint="Export for an older opset, or convert with onnx.version_converter.",
    )


def _function_error(key: tuple[str, str, str], what: str) -> LintError:
    return LintError(
        f"function {key[1]!r} of domain {key[0]!r} {what}.",
        code="bad_function",
        hint="Export the model with its functions inlined (onnx.inliner).",
    )


def _absurd(found: FoundNode, what: str) -> LintError:
    return LintError(
        f"{found.where} {what}.",
        code="huge_constant",
        hint="No device can hold that; is a dimension wrong? --max-tensor-mb raises the limit.",
    )
