"""What a TFLite file says of itself: its graphs, tensors and signatures, read strictly. Pure.

Publisher and device read the same bytes by the same code; `tflite_rules` says what is a trap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Final, NamedTuple

from edgefleet_shared import flatbuffer
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.flatbuffer import FlatbufferError, Table
from edgefleet_shared.manifest import TensorSpec
from edgefleet_shared.tflite_schema import CUSTOM, DATATYPES, ELEMENT_BITS, SCHEMA, SUBGRAPH

IDENTIFIER: Final = b"TFL3"
DEFAULT_SIGNATURE: Final = "serving_default"


class ModelError(InvalidInputError):
    """Why a model must not be run; names the tensor or the operator."""


class Tensor(NamedTuple):
    """One tensor; `shape` has -1 where it varies, `constant` is its data's length or -1.

    `name` may be empty; `where` is for people.
    """

    where: str
    name: str
    kind: int
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    buffer: int
    variable: bool
    table: Table

    @property
    def size(self) -> int:
        """Bytes that it takes; 0 for types whose elements have no size of their own."""
        return (prod(self.shape) * ELEMENT_BITS[self.kind] + 7) // 8

    @property
    def spec(self) -> TensorSpec | None:
        """Name, datatype and shape for a manifest; None if the type has no name there."""
        kind = DATATYPES.get(self.kind)
        return TensorSpec(self.name, kind, list(self.signature)) if kind else None  # type: ignore[arg-type] # DATATYPES holds nothing else


class Operator(NamedTuple):
    """One operator; `custom` is '' for a builtin one, `subgraphs` are those that it calls."""

    where: str
    code: int
    custom: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    subgraphs: tuple[int, ...]
    table: Table


class Graph(NamedTuple):
    """One subgraph."""

    where: str
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: Sequence[int]
    outputs: Sequence[int]


class Signature(NamedTuple):
    """Names of a subgraph's inputs and outputs, by the numbers of their tensors."""

    key: str
    graph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


class Model(NamedTuple):
    """A file that was read; `size` is its length, `table` its root."""

    graphs: list[Graph]
    signatures: list[Signature]
    buffers: list[Table]
    table: Table
    size: int


def read(data: memoryview) -> Model:
    """Return what a file holds.

    Raises:
        ModelError: It is no TFLite file, or numbers in it lead nowhere (code `not_a_model`).
    """
    try:
        root = flatbuffer.read(data, SCHEMA, "Model", IDENTIFIER)
        codes = [_code(one) for one in root.get("operator_codes", [])]
        graphs = [_graph(index, one, codes) for index, one in enumerate(root.get("subgraphs", []))]
        signatures = [_signature(one) for one in root.get("signature_defs", [])]
    except FlatbufferError as error:
        raise _no_model(str(error)) from error
    if not graphs:
        raise _no_model("it holds no graph")
    return Model(graphs, signatures, root.get("buffers", []), root, len(data))


def _no_model(why: str) -> ModelError:
    return ModelError(
        f"The file is no TFLite model: {why}.",
        code="not_a_model",
        hint="Give a .tflite file as a converter writes it; a newer converter than this version "
        "knows may write what is refused here.",
    )


def described(model: Model) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return inputs and outputs of a model without findings, as a manifest has them.

    By the names of the signature `serving_default`, or of the only one; without a signature by
    the names of the first subgraph's tensors.

    Raises:
        ModelError: No client could send or read one, or names do not tell them apart (`io_type`).
    """
    chosen = _chosen(model.signatures)
    graph = model.graphs[chosen.graph if chosen else 0]
    sides = []
    for kind in ("input", "output"):
        named = _named(graph, chosen, kind)
        specs = [_spec(kind, name, graph.tensors[index]) for name, index in named]
        if not specs or "" in (names := {spec.name for spec in specs}) or len(names) < len(specs):
            raise ModelError(
                f"The model's {kind}s are none, or have no name or one of them twice.",
                code="io_type",
                hint="Convert it with a signature: names of its own for every input and output.",
            )
        sides.append(specs)
    return sides[0], sides[1]


def _named(graph: Graph, chosen: Signature | None, kind: str) -> list[tuple[str, int]]:
    if chosen:
        return list((chosen.inputs if kind == "input" else chosen.outputs).items())
    indices = graph.inputs if kind == "input" else graph.outputs
    return [(graph.tensors[index].name, index) for index in indices]


def _chosen(signatures: Sequence[Signature]) -> Signature | None:
    default = [one for one in signatures if one.key == DEFAULT_SIGNATURE]
    if len(signatures) > 1 and len(default) != 1:
        raise ModelError(
            f"The model has {len(signatures)} signatures and none is {DEFAULT_SIGNATURE!r}: "
            f"{', '.join(repr(one.key[:40]) for one in signatures[:9])}.",
            code="io_type",
            hint=f"Convert it with one signature, or name the one to serve {DEFAULT_SIGNATURE}.",
        )
    return next(iter(default or signatures), None)


def _spec(kind: str, name: str, tensor: Tensor) -> TensorSpec:
    found = tensor._replace(name=name).spec
    if found is None or found.datatype == "BYTES":
        raise ModelError(
            f"{kind} {name[:80]!r} is of a type that cannot be sent or read here.",
            code="io_type",
            hint="Text, complex numbers and 4-bit numbers stay inside the model; convert it with "
            "numbers at its ends.",
        )
    return found


def _code(table: Table) -> tuple[int, str]:
    """Return an operator's number, and its custom name or ''; old files have numbers below 127."""
    old, new = table.get("deprecated_builtin_code", 0), table.get("builtin_code", 0)
    code = max(old, new)
    if min(old, new) < 0:
        raise FlatbufferError(f"an operator has the number {min(old, new)}")
    return code, table.get("custom_code", "") if code == CUSTOM else ""


def _graph(index: int, table: Table, codes: list[tuple[int, str]]) -> Graph:
    where = f"subgraph {index}, " if index else ""
    tensors = [_tensor(where, number, one) for number, one in enumerate(table.get("tensors", []))]
    operators = [
        _operator(f"{where}operator {number}", one, codes)
        for number, one in enumerate(table.get("operators", []))
    ]
    graph = Graph(where, tensors, operators, table.get("inputs", ()), table.get("outputs", ()))
    for used in _used(graph):
        if not -1 <= used < len(tensors):
            raise FlatbufferError(f"{where}tensor {used} of {len(tensors)} is used")
    if min([*graph.inputs, *graph.outputs], default=0) < 0:
        raise FlatbufferError(f"{where}an input or output is no tensor")
    return graph


def _used(graph: Graph) -> Iterator[int]:
    yield from graph.inputs
    yield from graph.outputs
    for operator in graph.operators:
        yield from operator.inputs
        yield from operator.outputs
        yield from operator.table.get("intermediates", ())


def _tensor(where: str, number: int, table: Table) -> Tensor:
    name, kind = table.get("name", ""), table.get("type", 0)
    where = f"{where}tensor {name[:80]!r}" if name else f"{where}tensor {number}"
    shape = tuple(table.get("shape", ()))
    signature = tuple(table.get("shape_signature", ())) or shape
    if not 0 <= kind < len(ELEMENT_BITS):
        raise FlatbufferError(f"{where} has the type {kind}")
    if min(shape, default=0) < 0 or len(signature) != len(shape) or len(shape) > 32:
        raise FlatbufferError(f"{where} has the shape {list(shape)[:40]}")
    if any(want not in {-1, size} for want, size in zip(signature, shape, strict=True)):
        raise FlatbufferError(f"{where} has two shapes, {list(signature)} and {list(shape)}")
    variable = bool(table.get("is_variable", False))
    return Tensor(where, name, kind, shape, signature, table.get("buffer", 0), variable, table)


def _operator(where: str, table: Table, codes: list[tuple[int, str]]) -> Operator:
    index = table.get("opcode_index", 0)
    if index >= len(codes):
        raise FlatbufferError(f"{where} is of kind {index} of {len(codes)}")
    code, custom = codes[index]
    inputs, outputs = table.get("inputs", ()), table.get("outputs", ())
    if min(outputs, default=0) < 0:
        raise FlatbufferError(f"{where} writes to no tensor")
    return Operator(where, code, custom, inputs, outputs, _called(table), table)


def _called(table: Table) -> tuple[int, ...]:
    """Return the subgraphs that an operator's options name; a number left out is 0."""
    found: list[int] = []
    for union in ("builtin_options", "builtin_options2"):
        options = table.get(union)
        for field in SCHEMA.tables[options.name] if options else ():
            if field.name.startswith(SUBGRAPH):
                value = options.get(field.name, () if field.kind == "[i]" else 0)
                found.extend(value if field.kind == "[i]" else [value])
    return tuple(found)


def _signature(table: Table) -> Signature:
    sides = []
    for kind in ("inputs", "outputs"):
        pairs = [(one.get("name", ""), one.get("tensor_index", 0)) for one in table.get(kind, [])]
        if len(dict(pairs)) != len(pairs):
            raise FlatbufferError("a signature has one name twice")
        sides.append(dict(pairs))
    return Signature(table.get("signature_key", ""), table.get("subgraph_index", 0), *sides)
