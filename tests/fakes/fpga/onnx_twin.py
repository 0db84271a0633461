"""The test network as an ONNX model, in float32 that is exact: what stands in for a core."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.fakes.fpga import mlp


def twin(seed: int) -> bytes:
    """X float [n, 16] -> y float [n, 4]: quantised, summed and scaled as the core does it."""
    first, bias, second = mlp.weights(seed)
    low, high = -(2 ** (mlp.IN_BITS - 1)), 2 ** (mlp.IN_BITS - 1) - 1
    constants = {
        "up": 2.0**mlp.IN_FRACTION, "low": low, "high": high, "w1": first, "b1": bias,
        "w2": second, "down": 2.0**-mlp.OUT_FRACTION,
    }  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "low", "high"], ["q"]),
        helper.make_node("MatMul", ["q", "w1"], ["h"]),
        helper.make_node("Add", ["h", "b1"], ["hb"]),
        helper.make_node("Relu", ["hb"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["s"]),
        helper.make_node("Mul", ["s", "down"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "twin",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", mlp.INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", mlp.OUTPUTS])],
        [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()
