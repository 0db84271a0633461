"""TFLite models that lead a runtime astray, each with the code that the device's lint must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests import tflite_models as light
from tests.tflite_models import Net, s

BROKEN, LOST = "invalid_model", "not_a_model"


class Hostile(NamedTuple):
    """One attack: its bytes, and what the lint calls it."""

    build: Callable[[], bytes]
    code: str


def changed(change: Callable[[object], None], data: bytes | None = None) -> bytes:
    """Return a good model after one change of its object."""
    model = light.unpack(data or light.mlp())
    change(model)
    return light.pack(model)


def _graph(change: Callable[[object], None]) -> Callable[[], bytes]:
    return lambda: changed(lambda model: change(model.subgraphs[0]))


def _other_file() -> bytes:
    def change(model):
        group, buffer = s.ExternalBufferGroupT(), s.ExternalBufferT()
        group.name, buffer.id, buffer.length = "../secret", 1, 32
        model.externalBufferGroups, model.externalBuffers = [group], [buffer]
        model.subgraphs[0].tensors[3].externalBuffer = 1

    return changed(change)


def _beyond(offset: int, size: int) -> Callable[[], bytes]:
    def change(model):
        buffer = model.buffers[-1]
        buffer.data, buffer.offset, buffer.size = None, offset, size

    return lambda: changed(change)


def _code(code: int, name: str = "") -> Callable[[], bytes]:
    def change(model):
        one = model.operatorCodes[0]
        one.builtinCode, one.deprecatedBuiltinCode = code, min(code, 127)
        one.customCode = name or None

    return lambda: changed(change)


def _strided(width: int) -> bytes:
    def change(model):
        model.subgraphs[0].operators[0].builtinOptions.strideW = width

    return changed(change, light.conv())


def _calling(cond: int, body: int) -> Callable[[], bytes]:
    def change(model):
        options = model.subgraphs[0].operators[0].builtinOptions
        options.condSubgraphIndex, options.bodySubgraphIndex = cond, body

    return lambda: changed(change, light.slow())


def _mutual() -> bytes:
    """Two subgraphs that call one another."""
    net = Net()
    x, y = net.tensor("x", [1], "int32"), net.tensor("y", [1], "int32")
    net.op("WHILE", [x], [y], condSubgraphIndex=1, bodySubgraphIndex=2)
    net.ends([x], [y])
    for other in (2, 1):
        inner = Net(net)
        a, b = inner.tensor("a", [1], "int32"), inner.tensor("b", [1], "int32")
        inner.op("WHILE", [a], [b], condSubgraphIndex=other, bodySubgraphIndex=other)
        inner.ends([a], [b])
    return net.data()


def _quantised_on(axis: int, scales: int) -> bytes:
    def change(model):
        found = model.subgraphs[0].tensors[2].quantization
        found.scale, found.zeroPoint = [0.5] * scales, [0] * scales
        found.quantizedDimension = axis

    return changed(change, light.quantised())


def huge(elements: int) -> bytes:
    """One intermediate tensor that no device holds."""
    net = Net()
    x, y = net.tensor("x", [1]), net.tensor("y", [1])
    big, dims = net.tensor("big", [elements]), net.constant("d", np.array([elements], np.int32))
    net.op("BROADCAST_TO", [x, dims], [big])
    net.op("REDUCE_MAX", [big, net.constant("a", np.zeros(1, np.int32))], [y],
           kind="ReducerOptions", keepDims=True)  # fmt: skip
    net.ends([x], [y])
    return net.data()


def _set(path: str, value: object) -> Callable[[], bytes]:
    """Set one field of the model, as `operators.0.inputs`."""

    def change(graph):
        *way, last = path.split(".")
        for step in way:
            graph = graph[int(step)] if step.isdigit() else getattr(graph, step)
        setattr(graph, last, value)

    return _graph(change)


VARIANTS = {
    "another file": Hostile(_other_file, "external_data_path"),
    "a tensor in another file": Hostile(_set("tensors.3.externalBuffer", 1), "external_data_path"),
    "data behind the end": Hostile(_beyond(2**20, 40), "external_data_range"),
    "data that ends behind the end": Hostile(_beyond(64, 2**40), "external_data_range"),
    "data at an offset without a size": Hostile(_beyond(64, 0), "external_data_range"),
    "data twice": Hostile(
        lambda: changed(lambda model: setattr(model.buffers[1], "offset", 64)),
        "external_data_range",
    ),
    "an input left out that is read": Hostile(_set("operators.0.inputs", [0, -1, 5]), BROKEN),
    "custom operator": Hostile(_code(s.BuiltinOperator.CUSTOM, "Evil"), "op_domain"),
    "custom operator without a name": Hostile(_code(s.BuiltinOperator.CUSTOM), "op_domain"),
    "Flex operator": Hostile(_code(s.BuiltinOperator.CUSTOM, "FlexReadFile"), "op_domain"),
    "another accelerator's operator": Hostile(
        _code(s.BuiltinOperator.CUSTOM, "edgetpu-custom-op"), "op_domain"
    ),
    "delegate in a file": Hostile(_code(s.BuiltinOperator.DELEGATE), "op_domain"),
    "call out of StableHLO": Hostile(_code(s.BuiltinOperator.STABLEHLO_CUSTOM_CALL), "op_domain"),
    "operator of tomorrow": Hostile(_code(4000), "op_domain"),
    "operator below zero": Hostile(_code(-3), LOST),
    "tensor that is not there": Hostile(_set("operators.0.inputs", [0, 999, -1]), LOST),
    "tensor below zero": Hostile(_set("operators.0.inputs", [0, -2, -1]), LOST),
    "output that is no tensor": Hostile(_set("operators.0.outputs", [-1]), LOST),
    "graph's output that is not there": Hostile(_set("outputs", [77]), LOST),
    "graph's input below zero": Hostile(_set("inputs", [-1]), LOST),
    "kind of operator that is not there": Hostile(_set("operators.0.opcodeIndex", 9), LOST),
    "buffer that is not there": Hostile(_set("tensors.0.buffer", 99), BROKEN),
    "type that is not there": Hostile(_set("tensors.0.type", 99), LOST),
    "shape below zero": Hostile(_set("tensors.4.shape", [-32, 64]), LOST),
    "two shapes": Hostile(_set("tensors.4.shapeSignature", [-1]), LOST),
    "shape that lies": Hostile(_set("tensors.4.shape", [32, 65]), "tensor_data"),
    "shape that lies much": Hostile(_set("tensors.4.shape", [2**31 - 1] * 2), "tensor_too_large"),
    "shape of a computed tensor": Hostile(lambda: huge(2**30), "tensor_too_large"),
    "read before it is computed": Hostile(_set("operators.0.inputs", [1, 4, 5]), BROKEN),
    "operators in a circle": Hostile(
        _graph(lambda graph: graph.operators.reverse()), BROKEN
    ),
    "write over a constant": Hostile(_set("operators.0.outputs", [4]), BROKEN),
    "write over an input": Hostile(_set("operators.0.outputs", [0]), BROKEN),
    "written twice": Hostile(_set("operators.1.outputs", [1]), BROKEN),
    "output that nobody computes": Hostile(
        _graph(lambda graph: graph.operators.pop()), BROKEN
    ),
    "constant that varies": Hostile(_set("tensors.4.isVariable", True), BROKEN),
    "stride of zero": Hostile(lambda: _strided(0), BROKEN),
    "stride below zero": Hostile(lambda: _strided(-1), BROKEN),
    "loop that calls itself": Hostile(_calling(1, 0), BROKEN),
    "loop without a body": Hostile(_calling(1, 7), BROKEN),
    "two that call one another": Hostile(_mutual, BROKEN),
    "scales on no axis": Hostile(lambda: _quantised_on(5, 2), BROKEN),
    "more scales than channels": Hostile(lambda: _quantised_on(0, 9), BROKEN),
    "signature of no graph": Hostile(
        lambda: changed(lambda model: setattr(model.signatureDefs[0], "subgraphIndex", 3)), BROKEN
    ),
    "signature of another tensor": Hostile(
        lambda: changed(lambda m: setattr(m.signatureDefs[0].outputs[0], "tensorIndex", 4)), BROKEN
    ),
    "metadata in no buffer": Hostile(
        lambda: changed(lambda model: setattr(model, "metadataBuffer", [99])), BROKEN
    ),
    "no graph": Hostile(lambda: changed(lambda model: model.subgraphs.clear()), LOST),
    "another identifier": Hostile(lambda: light.mlp().replace(b"TFL3", b"TFL2", 1), LOST),
    "cut in the middle": Hostile(lambda: light.mlp()[:5000], LOST),
    "nothing but a head": Hostile(lambda: b"\x1c\0\0\0TFL3", LOST),
}  # fmt: skip
