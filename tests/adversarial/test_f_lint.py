"""Section F, the device's own reader: it must see in a model whatever the runtime's reader sees."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from edgefleet_agent.worker import lint, protobuf
from edgefleet_provisioning import onnx_walk
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.onnx_rules import CONTRIB, MAX_OPSETS
from tests.adversarial.breeding import mutant
from tests.adversarial.hostile_models import VARIANTS, lay_out
from tests.models import linear, mlp, package
from tests.provisioning import bad_models as bad


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The description of a package of one model file."""
    return package(tmp_path_factory.mktemp("p"), linear(1.0)).spec


def refused(spec, data: bytes) -> str:
    """Return the code by which the lint refuses a model, '' if it lets it pass."""
    entry = msgspec.structs.replace(spec.files[0], size=len(data))
    fd = os.memfd_create("model")
    try:
        os.write(fd, data)
        lint.check(msgspec.structs.replace(spec, files=[entry]), [fd])
    except IncompatibleError as error:
        return error.code
    finally:
        os.close(fd)
    return ""


def trap(data: bytes) -> str:
    """Say what onnx's own reader finds in a model that no device may load; '' for nothing."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return ""
    found = onnx_walk.walk(model)
    for tensor in found.tensors:
        if tensor.tensor.external_data or tensor.tensor.data_location == TensorProto.EXTERNAL:
            return "external data"
    own = {onnx_walk.function_key(function) for function in model.functions}
    for node in found.nodes:
        domain = onnx_walk.domain_of(node.node.domain)
        if onnx_walk.called(node.node) in own:
            continue
        if domain not in MAX_OPSETS or (
            domain == "com.microsoft" and node.node.op_type not in CONTRIB
        ):
            return f"operator domain {domain!r}"
    return ""


def test_48_what_the_lint_lets_pass_holds_no_trap_for_another_reader(spec, tmp_path):
    """Three thousand wounded hostile models: not one is let pass in which onnx finds the trap."""
    lay_out(tmp_path / "package")
    parents = [one.build(tmp_path / "package").SerializeToString() for one in VARIANTS.values()]
    parents += [
        bad.with_node("Odd", "evil").SerializeToString(),
        bad.laughing().SerializeToString(),
    ]
    passed = 0
    for seed in range(3000):
        data = mutant(parents[seed % len(parents)], seed)
        if not refused(spec, data):
            passed += 1
            assert trap(data) == "", seed
    assert passed > 20  # a wound may remove the trap


def test_48_good_models_pass(spec):
    """Contributed operators, functions and large constants are no traps."""
    good = [linear(1.0), mlp(), bad.good().SerializeToString(), bad.laughing().SerializeToString()]
    good.append(bad.with_node("Gelu", "com.microsoft").SerializeToString())
    good.append(bad.with_node("Scaler", "ai.onnx.ml").SerializeToString())
    good.append(bad.with_node("Relu", "ai.onnx").SerializeToString())
    assert [refused(spec, data) for data in good] == [""] * len(good)


@given(st.binary(max_size=300))
def test_48_any_bytes_get_a_verdict(data):
    """The reader ends with fields or with its own error, never with another."""
    view = memoryview(data)
    try:
        total = sum(len(value) for _, _, _, value in protobuf.fields(view))
    except protobuf.WireError:
        return
    assert total <= len(data)


def field(number: int, body: bytes) -> bytes:
    """One length-delimited field."""
    size, length = b"", len(body)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + body


def deep(levels: int) -> bytes:
    """Graphs in graphs in graphs; onnx's own builder gives up where the lint must."""
    graph = b""
    for _ in range(levels):
        attribute = field(lint.ATTRIBUTE["g"], graph)
        graph = field(lint.GRAPH["node"], field(lint.NODE["attribute"], attribute))
    return field(lint.MODEL["graph"], graph)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\x3b\x3c", "not_a_model", id="a group"),
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", "not_a_model", id="longer than all"),
        pytest.param(b"\x3a" + b"\x80" * 11, "not_a_model", id="a number without an end"),
        pytest.param(b"\x80\x80\x80\x80\x80\x01\0", "not_a_model", id="a tag of 36 bits"),
        pytest.param(b"\x08\x08", "not_a_model", id="no graph"),
        pytest.param(deep(lint.MAX_DEPTH + 1), "not_a_model", id="too deep"),
        pytest.param(deep(8), "", id="deep"),
    ],
)
def test_48_what_two_readers_may_read_in_two_ways_is_refused(spec, data, code):
    """Groups, numbers and lengths that no encoder writes, and graphs without a bottom."""
    assert refused(spec, data) == code


def test_48_a_location_that_is_split_into_two_messages_is_seen(spec):
    """Protobuf merges a field that comes twice; each half is looked at."""
    model = bad.with_external("../secret")
    whole = model.SerializeToString()
    halves = bad.good().SerializeToString() + whole  # a graph, and the same graph again
    assert refused(spec, halves) == "external_data_path"
    tensor = TensorProto(name="w", data_type=1, dims=[4, 2], data_location=TensorProto.EXTERNAL)
    model = bad.good()
    model.graph.initializer[0].CopyFrom(tensor)
    assert refused(spec, model.SerializeToString()) == "tensor_data"


def test_48_a_large_model_is_walked_in_milliseconds(spec, tmp_path):
    """Weights are skipped, not read: 200 MB cost what 2 kB cost."""
    model = bad.good()
    model.graph.initializer[0].dims[:] = [4, 12_500_000]
    model.graph.initializer[0].raw_data = bytes(4 * 4 * 12_500_000)
    path = Path(tmp_path / "large")
    path.write_bytes(model.SerializeToString())
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        touched = sum(1 for _ in protobuf.fields(view))
    assert touched < 20
    entry = msgspec.structs.replace(spec.files[0], size=path.stat().st_size)
    fd = os.open(path, os.O_RDONLY)
    lint.check(msgspec.structs.replace(spec, files=[entry]), [fd])
    os.close(fd)
    path.unlink()
