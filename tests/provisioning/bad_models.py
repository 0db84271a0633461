"""ONNX models with one thing wrong each, and a good one to begin with."""

from __future__ import annotations

import os

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

WIDTH = 4


def value(name, kind=TensorProto.FLOAT, shape=("n", WIDTH)):
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def build(nodes, constants=(), opset=17, outputs=None, **more) -> ModelProto:
    """A model from `x` [n, 4] to `y`."""
    graph = helper.make_graph(
        nodes, "g", [value("x")], outputs or [value("y", shape=("n", None))], list(constants)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)
    model.ir_version = min(model.ir_version, 10)
    return model


def good() -> ModelProto:
    """Y = x W, with W inside."""
    return build([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [weights()])


def weights(name="w") -> TensorProto:
    """Four by two floats."""
    return numpy_helper.from_array(np.ones((WIDTH, 2), np.float32), name)


def external(location, length=32, offset=0, name="w") -> TensorProto:
    """Four by two floats that lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[WIDTH, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def with_external(location, **more) -> ModelProto:
    """The good model, its weights elsewhere."""
    model = good()
    model.graph.initializer[0].CopyFrom(external(location, **more))
    return model


def in_subgraph() -> ModelProto:
    """Foreign data in a branch of an If."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "deep"], ["b"])], "branch", [],
        [value("b", shape=("n", 2))], [external("../secret", name="deep")],
    )  # fmt: skip
    constant = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], name="fork", then_branch=branch, else_branch=branch)
    return build([node], [constant])


def in_sparse() -> ModelProto:
    """A sparse initializer whose values lie elsewhere."""
    model = good()
    sparse = model.graph.sparse_initializer.add(dims=[WIDTH, 2])
    sparse.values.CopyFrom(external("weights.bin", length=8, name="thin"))
    sparse.values.dims[:] = [2]
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 3]), "i"))
    return model


def in_attribute() -> ModelProto:
    """A Constant whose tensor lies elsewhere."""
    constant = helper.make_node("Constant", [], ["w"], name="const", value=external("/etc/passwd"))
    return build([constant, helper.make_node("MatMul", ["x", "w"], ["y"])])


def in_hidden_attribute() -> ModelProto:
    """A tensor in an attribute that says it is a number."""
    model = good()
    attribute = model.graph.node[0].attribute.add(name="odd", type=AttributeProto.INT)
    attribute.t.CopyFrom(external("../secret"))
    return model


def in_function() -> ModelProto:
    """Foreign data inside a function of the model."""
    body = helper.make_node("Constant", [], ["w"], value=external("../secret"))
    return with_function([body, helper.make_node("MatMul", ["a", "w"], ["b"])])


def with_function(nodes, domain="mine", name="Twice", call=None) -> ModelProto:
    """A model that calls a function of its own."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function(domain, name, ["a"], ["b"], nodes, imports)
    model = build([call or helper.make_node(name, ["x"], ["y"], domain=domain, name="call")])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(function)
    return model


def with_node(operator, domain="", version=1, **attributes) -> ModelProto:
    """The good model, one more node in it."""
    model = good()
    node = helper.make_node(operator, ["x"], ["z"], name="odd", domain=domain, **attributes)
    model.graph.node.append(node)
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, version))
    return model


def with_initializer(**fields) -> ModelProto:
    """The good model and one more initializer, `v`."""
    model = good()
    model.graph.initializer.append(TensorProto(name="v", **fields))
    return model


def filled(shape, operator="ConstantOfShape") -> ModelProto:
    """A model that makes a tensor of a constant shape."""
    constant = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    inputs = {"ConstantOfShape": ["shape"], "Expand": ["x", "shape"]}[operator]
    return build([helper.make_node(operator, inputs, ["y"], name="big")], [constant])


def endless_loop() -> ModelProto:
    """A Loop of 2^62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_out"])], "body",
        [value("i", TensorProto.INT64, ()), value("go", TensorProto.BOOL, ())],
        [value("go_out", TensorProto.BOOL, ())],
    )  # fmt: skip
    trips = numpy_helper.from_array(np.array(2**62), "trips")
    yes = numpy_helper.from_array(np.array(True), "yes")
    loop = helper.make_node("Loop", ["trips", "yes"], [], name="spin", body=body)
    return build([loop, helper.make_node("Identity", ["x"], ["y"])], [trips, yes])


def laughing() -> ModelProto:
    """Functions that call one another ten times each, ten deep: ten thousand million nodes."""
    model = with_function([helper.make_node("Relu", ["a"], ["b"])], name="F0")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for level in range(1, 11):
        calls = [
            helper.make_node(f"F{level - 1}", ["a"], ["b" if i == 9 else f"t{i}"], domain="mine")
            for i in range(10)
        ]
        function = helper.make_function("mine", f"F{level}", ["a"], ["b"], calls, imports)
        model.functions.append(function)
    return model


def map_output() -> ModelProto:
    """What skl2onnx exports without {'zipmap': False}."""
    model = good()
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    )
    model.graph.output[0].type.CopyFrom(kind)
    return model


def changed(change) -> ModelProto:
    """The good model after `change(model)`."""
    model = good()
    change(model)
    return model


def save(model: ModelProto | bytes, folder, name="model.onnx"):
    """Write a model, and around it the files that bad ones point to."""
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(64))
    (folder.parent / "secret").write_bytes(bytes(64))
    (folder / "inner").mkdir()
    (folder / "inner" / "weights.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to("weights.bin")
    (folder / "linked").symlink_to("inner")
    (folder / "hard.bin").write_bytes(bytes(64))
    os.link(folder / "hard.bin", folder / "other-name.bin")
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def recursive() -> ModelProto:
    """A function that calls itself."""
    return with_function([helper.make_node("Twice", ["a"], ["b"], domain="mine")])
