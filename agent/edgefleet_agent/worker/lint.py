"""What a model must not hold, looked for in a process that is thrown away, before any runtime call.

The publisher's lint says the same with more words and more rules. This one believes nobody: it
reads the verified bytes itself, and runtimes have read files, memory and devices for such models.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Sequence
from typing import Final

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker.protobuf import BYTES, WireError, fields, parts, text
from edgefleet_shared import tflite_file, tflite_rules
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.onnx_rules import CONTRIB, MAX_OPSETS, MEMORY_MARK
from edgefleet_shared.package import FileEntry

# Field numbers of onnx.proto; a test compares them with the onnx package.
MODEL: Final = {"graph": 7, "training_info": 20, "functions": 25}
TRAINING: Final = {"initialization": 1, "algorithm": 2}
FUNCTION: Final = {"name": 1, "node": 7, "domain": 10, "attribute_proto": 11, "overload": 13}
GRAPH: Final = {"node": 1, "initializer": 5, "sparse_initializer": 15}
NODE: Final = {"op_type": 4, "attribute": 5, "domain": 7, "overload": 8}
ATTRIBUTE: Final = {
    "t": 5, "g": 6, "tensors": 10, "graphs": 11, "sparse_tensor": 22, "sparse_tensors": 23,
}  # fmt: skip
SPARSE: Final = {"values": 1, "indices": 2}
TENSOR: Final = {"external_data": 13, "data_location": 14}
ENTRY: Final = {"key": 1, "value": 2}

MAX_DEPTH: Final = 32
"""Graphs in graphs; protobuf itself ends at 100 messages, which is 33 of them."""

Key = tuple[str, str, str]
"""Domain, name and overload of a function that the model defines itself."""


def check(spec: ModelSpec, files: Sequence[int]) -> None:
    """Refuse a package whose model is a trap.

    Args:
        spec: What shall be loaded.
        files: Descriptors in the order of `spec.files`.

    Raises:
        IncompatibleError: Its code is one of the publisher's lint, as `external_data_path`.
    """
    for entry, fd in zip(spec.files, files, strict=True):
        if entry.role not in {"onnx", "tflite"}:
            continue
        if not entry.size:
            raise _refused("not_a_model", f"{entry.path} is empty")
        data = memoryview(mmap.mmap(fd, entry.size, prot=mmap.PROT_READ))
        if entry.role == "onnx":
            _Model(entry, spec).check(data)
        else:
            _check_tflite(data, spec)


def _check_tflite(data: memoryview, spec: ModelSpec) -> None:
    try:
        model = tflite_file.read(data)
    except tflite_file.ModelError as error:
        raise _from_finding(error) from error
    limit, custom = spec.limits.memory_mb * 2**20, tflite_rules.allowed_custom(spec.accelerator)
    for finding in tflite_rules.check(model, max_bytes=limit, custom=custom):
        raise _from_finding(finding)


class _Model:
    """One walk over one model; every occurrence of a field counts, also where one would do."""

    def __init__(self, entry: FileEntry, spec: ModelSpec) -> None:
        folder = posixpath.dirname(entry.path)
        self._external = {
            posixpath.relpath(other.path, folder): other.size
            for other in spec.files
            if other.role == "onnx_external"
        }
        self._functions: set[Key] = set()

    def check(self, data: memoryview) -> None:
        try:
            self._model(data)
        except WireError as error:
            raise _refused("not_a_model", f"the model cannot be read as protobuf ({error})") from (
                error
            )

    def _model(self, data: memoryview) -> None:
        functions = list(parts(data, MODEL["functions"]))
        self._functions = {self._function_key(function) for function in functions}
        graphs = list(parts(data, MODEL["graph"]))
        if not graphs:
            raise _refused("not_a_model", "the model holds no graph")
        for training in parts(data, MODEL["training_info"]):
            for number in TRAINING.values():
                graphs.extend(parts(training, number))
        for graph in graphs:
            self._graph(graph, 0)
        for function in functions:
            for node in parts(function, FUNCTION["node"]):
                self._node(node, 0)
            for attribute in parts(function, FUNCTION["attribute_proto"]):
                self._attribute(attribute, 0)

    def _function_key(self, data: memoryview) -> Key:
        names = [FUNCTION[name] for name in ("domain", "name", "overload")]
        found = dict.fromkeys(names, "")
        for number, wire, _, value in fields(data):
            if number in found and wire == BYTES:
                found[number] = text(value)
        domain, name, overload = (found[number] for number in names)
        if _domain(domain) in MAX_OPSETS:
            raise _refused("bad_function", f"function {name[:80]!r} has the runtime's own domain")
        return _domain(domain), name, overload

    def _graph(self, data: memoryview, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refused("not_a_model", f"graphs lie in one another over {MAX_DEPTH} deep")
        for number, wire, _, value in fields(data):
            if wire != BYTES:
                continue
            if number == GRAPH["node"]:
                self._node(value, depth)
            elif number == GRAPH["initializer"]:
                self._tensor(value, sparse=False)
            elif number == GRAPH["sparse_initializer"]:
                self._sparse(value)

    def _node(self, data: memoryview, depth: int) -> None:
        domains, operators, overload = [], [], ""
        for number, wire, _, value in fields(data):
            if wire != BYTES:
                continue
            if number == NODE["attribute"]:
                self._attribute(value, depth)
            elif number == NODE["op_type"]:
                operators.append(text(value))
            elif number == NODE["domain"]:
                domains.append(_domain(text(value)))
            elif number == NODE["overload"]:
                overload = text(value)
        for domain in domains or [""]:
            for operator in operators or [""]:
                self._operator((domain, operator, overload))

    def _operator(self, called: Key) -> None:
        domain, operator, _ = called
        if called in self._functions:
            return
        if domain not in MAX_OPSETS:
            raise _refused("op_domain", f"a node uses the operator domain {domain[:80]!r}")
        if domain == "com.microsoft" and operator not in CONTRIB:
            raise _refused("op_domain", f"a node uses com.microsoft.{operator[:80]}")

    def _attribute(self, data: memoryview, depth: int) -> None:
        """Walk what an attribute holds; its declared type is not believed."""
        for number, wire, _, value in fields(data):
            if wire != BYTES:
                continue
            if number in {ATTRIBUTE["t"], ATTRIBUTE["tensors"]}:
                self._tensor(value, sparse=False)
            elif number in {ATTRIBUTE["g"], ATTRIBUTE["graphs"]}:
                self._graph(value, depth + 1)
            elif number in {ATTRIBUTE["sparse_tensor"], ATTRIBUTE["sparse_tensors"]}:
                self._sparse(value)

    def _sparse(self, data: memoryview) -> None:
        for number, wire, _, value in fields(data):
            if wire == BYTES and number in SPARSE.values():
                self._tensor(value, sparse=True)

    def _tensor(self, data: memoryview, *, sparse: bool) -> None:
        entries: list[tuple[str, str]] = []
        elsewhere = False
        for number, wire, value, body in fields(data):
            if number == TENSOR["external_data"] and wire == BYTES:
                entries.append(_entry(body))
            elif number == TENSOR["data_location"]:
                elsewhere = elsewhere or value & 0xFFFFFFFF != 0
        if entries or elsewhere:
            self._elsewhere(entries, sparse=sparse)

    def _elsewhere(self, entries: list[tuple[str, str]], *, sparse: bool) -> None:
        """Check external data: it must lie in a file that the package lists, and inside it."""
        if any(MEMORY_MARK in value for _, value in entries):
            raise _refused("memory_address", "a tensor points to an address in memory")
        if sparse:
            raise _refused("sparse_external", "a sparse tensor keeps its data in another file")
        named = dict(entries)
        if len(named) != len(entries) or not named.get("location"):
            raise _refused("tensor_data", "external data has no location, or a key twice")
        location = named["location"]
        if location not in self._external:
            raise _refused(
                "external_data_path", f"a tensor's data lies in {location[:80]!r}, no file of it"
            )
        span = [named.get(key, "0") for key in ("offset", "length")]
        if any(not n.isascii() or not n.isdigit() or len(n) > 15 for n in span):
            raise _refused("tensor_data", "external data has something else than a number")
        if sum(int(number) for number in span) > self._external[location]:
            raise _refused("external_data_range", f"a tensor's data ends behind {location!r}")


def _entry(data: memoryview) -> tuple[str, str]:
    found = dict.fromkeys(ENTRY.values(), "")
    for number, wire, _, value in fields(data):
        if number in found and wire == BYTES:
            if found[number]:  # the last one wins in one reader, the first one in another
                raise _refused("tensor_data", "external data has a key twice")
            found[number] = text(value)
    return found[ENTRY["key"]], found[ENTRY["value"]]


def _domain(domain: str) -> str:
    """Return a domain's short name: the standard operators have two."""
    return "" if domain == "ai.onnx" else domain


def _from_finding(finding: tflite_file.ModelError) -> IncompatibleError:
    why = finding.message.rstrip(".")
    return _refused(finding.code, why[0].lower() + why[1:])


def _refused(code: str, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"The model is refused before it is loaded: {why}.",
        code=code,
        hint="`edgefleet model lint FILE` says at the publisher's desk where.",
    )
