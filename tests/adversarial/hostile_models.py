"""ONNX models that read what is not theirs, each with the code that the device's lint must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from tests.provisioning import bad_models as bad

SECRET = np.arange(101, 109, dtype=np.float32)
"""What lies in files that a model has no right to: its sum shows in an answer that leaks it."""


class Hostile(NamedTuple):
    """One attack: how to build it in a folder, and what the lint calls it."""

    build: Callable[[Path], ModelProto]
    code: str


def _sparse(location: str) -> SparseTensorProto:
    sparse = SparseTensorProto(dims=[bad.WIDTH, 2])
    sparse.values.CopyFrom(bad.external(location, name="w"))
    sparse.values.dims[:] = [8]
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(8), "i"))
    return sparse


def sparse_initializer(location: str) -> ModelProto:
    """A sparse initializer `w` whose values lie elsewhere."""
    model = bad.good()
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(_sparse(location))
    return model


def sparse_value(location: str) -> ModelProto:
    """A Constant that gives a sparse tensor whose values lie elsewhere."""
    constant = helper.make_node("Constant", [], ["w"], name="thin")
    attribute = constant.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(_sparse(location))
    return bad.build([constant, helper.make_node("MatMul", ["x", "w"], ["y"])])


def subgraph(location: str) -> ModelProto:
    """Foreign data in both branches of an If."""
    model = bad.in_subgraph()
    for attribute in model.graph.node[0].attribute:
        attribute.g.initializer[0].CopyFrom(bad.external(location, name="deep"))
    return model


def function(location: str) -> ModelProto:
    """Foreign data in a function of the model."""
    body = helper.make_node("Constant", [], ["w"], value=bad.external(location))
    return bad.with_function([body, helper.make_node("MatMul", ["a", "w"], ["b"])])


def memory() -> ModelProto:
    """Data at an address in the runtime's own memory."""
    return bad.with_external("*/_ORT_MEM_ADDR_/*", offset=4096)


def spinning() -> ModelProto:
    """A Loop of 2^62 rounds whose result is the answer, so that no optimiser can drop it."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Abs", ["before"], ["after"]),
        ],
        "body",
        [bad.value("i", TensorProto.INT64, ()), bad.value("go", TensorProto.BOOL, ()),
         bad.value("before", shape=("n", 2))],
        [bad.value("go_out", TensorProto.BOOL, ()), bad.value("after", shape=("n", 2))],
    )  # fmt: skip
    constants = [
        numpy_helper.from_array(np.array(2**62), "trips"),
        numpy_helper.from_array(np.array(True), "yes"),
        bad.weights(),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["first"]),
        helper.make_node("Loop", ["trips", "yes", "first"], ["y"], body=body),
    ]
    return bad.build(nodes, constants)


def huge(elements: int) -> ModelProto:
    """A tensor of so many ones, summed into the answer, so that it must be made."""
    constant = numpy_helper.from_array(np.array([elements], np.int64), "shape")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"], value=one),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["small"]),
        helper.make_node("Add", ["small", "sum"], ["y"]),
    ]
    return bad.build(nodes, [constant, bad.weights()])


def lying(dims: list[int]) -> ModelProto:
    """Weights whose shape says much more than there are bytes."""
    model = bad.good()
    model.graph.initializer[0].dims[:] = dims
    return model


PATH = "external_data_path"
VARIANTS = {
    "parent folder": Hostile(lambda _: bad.with_external("../secret"), PATH),
    "absolute path": Hostile(lambda folder: bad.with_external(folder.parent / "secret"), PATH),
    "symbolic link": Hostile(lambda _: bad.with_external("soft.bin"), PATH),
    "folder that is a link": Hostile(lambda _: bad.with_external("up/secret"), PATH),
    "hard link": Hostile(lambda _: bad.with_external("hard.bin"), PATH),
    "device": Hostile(lambda _: bad.with_external("/dev/zero"), PATH),
    "/proc/self/environ": Hostile(lambda _: bad.with_external("/proc/self/environ"), PATH),
    "memory address": Hostile(lambda _: memory(), "memory_address"),
    "sparse initializer": Hostile(lambda _: sparse_initializer("../secret"), "sparse_external"),
    "sparse value": Hostile(lambda _: sparse_value("../secret"), "sparse_external"),
    "subgraph": Hostile(lambda _: subgraph("../secret"), PATH),
    "function": Hostile(lambda _: function("../secret"), PATH),
    "attribute of another type": Hostile(lambda _: bad.in_hidden_attribute(), PATH),
}


def lay_out(folder: Path) -> None:
    """Make what the models point to: a secret outside the folder, and links to it."""
    folder.mkdir(parents=True)
    (folder.parent / "secret").write_bytes(SECRET.tobytes())
    (folder / "soft.bin").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    (folder / "hard.bin").hardlink_to(folder.parent / "secret")
