"""What lint refuses, what it lets pass, and that it says where and what to do."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.lint import lint
from edgefleet_provisioning.lint_operators import MAX_OPSETS
from tests.provisioning import bad_models as bad

HUGE = 2**40

# What is wrong, the model, the code, and a word that the message must hold.
REFUSED = {
    "empty file": (b"", "not_a_model", "model.onnx"),
    "text": (b"hello, this is no model at all", "not_a_model", "model.onnx"),
    "another protobuf": (bad.weights().SerializeToString(), "not_a_model", "model.onnx"),
    "a model without graph": (
        onnx.ModelProto(ir_version=8).SerializeToString(), "not_a_model", "graph"),
    "a name that is no text": (
        bad.good().SerializeToString().replace(b"MatMul", b"Mat\xfful"), "not_a_model", "UTF-8"),
    "half a model": (bad.good().SerializeToString()[:60], "not_a_model", "model.onnx"),
    "data above the folder": (bad.with_external("../secret"), "external_data_path", "'w'"),
    "data by absolute path": (bad.with_external("/etc/passwd"), "external_data_path", "'w'"),
    "data by windows path": (bad.with_external("C:\\x"), "external_data_path", "'w'"),
    "data through a folder and up": (
        bad.with_external("inner/../../secret"), "external_data_path", "'w'"),
    "data in a hidden file": (bad.with_external(".hidden"), "external_data_path", "'w'"),
    "data behind a symbolic link": (bad.with_external("link.bin"), "external_data_link", "'w'"),
    "data behind a linked folder": (
        bad.with_external("linked/weights.bin"), "external_data_link", "'w'"),
    "data with a second name": (bad.with_external("hard.bin"), "external_data_link", "hard"),
    "data in a folder": (bad.with_external("inner"), "external_data_link", "regular"),
    "data that is missing": (bad.with_external("nowhere.bin"), "external_data_missing", "'w'"),
    "data past the end": (
        bad.with_external("weights.bin", offset=60), "external_data_range", "weights.bin"),
    "data of another length": (bad.with_external("weights.bin", length=31), "tensor_data", "'w'"),
    "data at a negative offset": (
        bad.with_external("weights.bin", offset=-1), "tensor_data", "'w'"),
    "data in memory": (
        bad.with_external("*/_ORT_MEM_ADDR_/*"), "memory_address", "'w'"),
    "data with two locations": (
        bad.changed(lambda m: (m.graph.initializer[0].CopyFrom(bad.external("weights.bin")),
                               m.graph.initializer[0].external_data.add(
                                   key="location", value="../secret"))),
        "tensor_data", "'w'"),
    "data without a location": (
        bad.changed(lambda m: setattr(m.graph.initializer[0], "data_location", 1)),
        "tensor_data", "'w'"),
    "foreign data in a sub-graph": (bad.in_subgraph(), "external_data_path", "'fork'"),
    "foreign data in a sparse tensor": (bad.in_sparse(), "sparse_external", "'thin'"),
    "foreign data in an attribute": (bad.in_attribute(), "external_data_path", "'const'"),
    "foreign data in a mistyped attribute": (
        bad.in_hidden_attribute(), "external_data_path", "'odd'"),
    "foreign data in a function": (bad.in_function(), "external_data_path", "'Twice'"),
    "custom operator domain": (bad.with_node("Do", "com.evil"), "op_domain", "'odd'"),
    "preview training domain": (
        bad.with_node("Adam", "ai.onnx.preview.training"), "op_domain", "'odd'"),
    "a compiled binary of a provider": (
        bad.with_node("EPContext", "com.microsoft"), "op_domain", "EPContext"),
    "unknown operator": (bad.with_node("Frobnicate"), "unknown_op", "'odd'"),
    "operator of a later opset": (bad.with_node("Gelu"), "unknown_op", "'odd'"),
    "operator long deprecated": (bad.with_node("Upsample"), "unknown_op", "'odd'"),
    "domain without opset": (
        bad.changed(lambda m: m.graph.node.append(
            helper.make_node("Scaler", ["x"], ["z"], name="odd", domain="ai.onnx.ml"))),
        "opset_missing", "'odd'"),
    "opset of the future": (
        bad.changed(lambda m: setattr(m.opset_import[0], "version", 27)), "opset_too_new", "27"),
    "ml opset of the future": (
        bad.with_node("Scaler", "ai.onnx.ml", version=6), "opset_too_new", "6"),
    "format of the future": (
        bad.changed(lambda m: setattr(m, "ir_version", 14)), "opset_too_new", "14"),
    "function that hides an operator": (
        bad.with_function([helper.make_node("Identity", ["a"], ["b"])], domain="", name="Relu"),
        "bad_function", "'Relu'"),
    "function that calls itself": (bad.recursive(), "bad_function", "'Twice'"),
    "functions that explode": (bad.laughing(), "bad_function", "'F"),
    "unknown operator in a function": (
        bad.with_function([helper.make_node("Nope", ["a"], ["b"], name="in")]),
        "unknown_op", "'Twice'"),
    "negative dimension": (
        bad.with_initializer(data_type=1, dims=[-1, 2]), "tensor_dims", "'v'"),
    "dimensions that overflow": (
        bad.with_initializer(data_type=1, dims=[2**32, 2**32]), "tensor_dims", "'v'"),
    "tensor over the limit": (
        bad.with_initializer(data_type=1, dims=[HUGE]), "tensor_too_large", "'v'"),
    "element type unknown": (bad.with_initializer(data_type=99, dims=[1]), "tensor_type", "'v'"),
    "fewer bytes than the shape says": (
        bad.with_initializer(data_type=1, dims=[4], raw_data=b"123"), "tensor_data", "'v'"),
    "fewer strings than the shape says": (
        bad.with_initializer(data_type=8, dims=[2], string_data=[b"a"]), "tensor_data", "'v'"),
    "no bytes at all": (bad.with_initializer(data_type=1, dims=[4]), "invalid_model", "checker"),
    "ConstantOfShape of a tebibyte": (bad.filled([HUGE]), "huge_constant", "'big'"),
    "ConstantOfShape that wraps": (bad.filled([2**33, 2**33]), "huge_constant", "'big'"),
    "ConstantOfShape below zero": (bad.filled([-5]), "huge_constant", "'big'"),
    "Expand to a tebibyte": (bad.filled([HUGE, 4], "Expand"), "huge_constant", "'big'"),
    "random tensor of a tebibyte": (
        bad.build([helper.make_node("RandomNormal", [], ["y"], name="big", shape=[HUGE])]),
        "huge_constant", "'big'"),
    "a loop without end": (bad.endless_loop(), "huge_constant", "'spin'"),
    "output that is a map": (bad.map_output(), "io_type", "zipmap"),
    "output of a type clients lack": (
        bad.changed(lambda m: setattr(
            m.graph.output[0].type.tensor_type, "elem_type", TensorProto.BFLOAT16)),
        "io_type", "BFLOAT16"),
    "output without a shape": (
        bad.changed(lambda m: m.graph.output[0].type.tensor_type.ClearField("shape")),
        "io_type", "'y'"),
    "no input": (
        bad.changed(lambda m: m.graph.ClearField("input")), "io_type", "input"),
    "an edge that leads nowhere": (
        bad.changed(lambda m: m.graph.node[0].input.__setitem__(0, "ghost")),
        "invalid_model", "ghost"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_lint_refuses(cli, tmp_path, case):
    """Each is refused with its code, a message that names the place, and a hint."""
    model, code, word = REFUSED[case]
    path = bad.save(model, tmp_path / "m")
    if code == "not_a_model":
        found = [cli.error("model", "lint", path)]
    else:
        document = cli.json("model", "lint", path, code=2)
        assert not document["ok"]
        found = document["findings"]
    assert code in {finding["code"] for finding in found}
    finding = next(finding for finding in found if finding["code"] == code)
    assert word in f"{finding['message']} {finding['hint']}"
    assert finding["hint"]


def quantised():
    """A model with operators of com.microsoft that are allowed."""
    node = helper.make_node("Gelu", ["p"], ["y"], domain="com.microsoft")
    model = bad.build([helper.make_node("MatMul", ["x", "w"], ["p"]), node], [bad.weights()])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def packed():
    """A model with a tensor of four-bit numbers."""
    model = bad.build([helper.make_node("MatMul", ["x", "w"], ["y"])], [bad.weights()], opset=21)
    four = helper.make_tensor("v", TensorProto.INT4, [3], [1, 2, 3])
    model.graph.initializer.append(four)
    return model


def computed_shape():
    """A tensor whose shape comes from the input."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["y"]),
    ]  # fmt: skip
    return bad.build(nodes)


ACCEPTED = {
    "the good one": bad.good(),
    "data beside the model": bad.with_external("weights.bin"),
    "data in a folder beside it": bad.with_external("inner/weights.bin", offset=32),
    "a function of its own": bad.with_function([helper.make_node("Relu", ["a"], ["b"])]),
    "operators that compute": quantised(),
    "four-bit numbers": packed(),
    "a shape that is computed": computed_shape(),
    "a modest constant": bad.filled([3, 2]),
    "the newest opset that devices load": bad.build(
        [helper.make_node("Relu", ["x"], ["y"])], opset=MAX_OPSETS[""]
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_lint_lets_good_models_pass(cli, tmp_path, case):
    """Each is a model that a device runs, and nothing is held against it."""
    document = cli.json("model", "lint", bad.save(ACCEPTED[case], tmp_path / "m"))
    assert document["ok"]
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_external_files_are_listed(tmp_path):
    """The report names the files that hold tensors, each once."""
    model = bad.with_external("weights.bin")
    model.graph.initializer.append(bad.external("inner/weights.bin", name="v"))
    model.graph.initializer.append(bad.external("weights.bin", offset=32, name="u"))
    report = lint(bad.save(model, tmp_path / "m"))
    assert report.findings == []
    assert report.external == ["inner/weights.bin", "weights.bin"]


def test_all_findings_are_listed(cli, tmp_path):
    """A model with three faults hears of all three."""
    model = bad.with_external("../secret")
    model.graph.node.append(helper.make_node("Nope", ["x"], ["z"]))
    model.graph.initializer.append(TensorProto(name="v", data_type=1, dims=[-1]))
    document = cli.json("model", "lint", bad.save(model, tmp_path / "m"), code=2)
    codes = {finding["code"] for finding in document["findings"]}
    assert codes == {"external_data_path", "unknown_op", "tensor_dims"}


def test_the_limit_of_a_tensor_is_an_option(cli, tmp_path):
    """A tensor of 3 MiB passes by default and not with --max-tensor-mb 2."""
    model = bad.good()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3 * 2**18, np.float32), "v"))
    path = bad.save(model, tmp_path / "m")
    assert cli.json("model", "lint", path)["ok"]
    found = cli.json("model", "lint", path, "--max-tensor-mb", 2, code=2)
    assert found["findings"][0]["code"] == "tensor_too_large"


def test_a_pipe_is_no_model(cli, tmp_path):
    """A named pipe, a folder and a missing file are refused at once, without waiting."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere.onnx"):
        assert cli.error("model", "lint", path)["code"] in {"not_a_model", "missing_file"}


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutants_are_judged_not_crashed_on(tmp_path, data):
    """A model with some bytes changed is accepted or refused; nothing else ever comes out."""
    raw = bytearray(bad.in_subgraph().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutant.onnx"
    path.write_bytes(raw)
    try:
        report = lint(path)
    except LintError:
        return
    assert all(isinstance(finding, LintError) for finding in report.findings)
