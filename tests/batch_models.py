"""Tiny ONNX models for batching: rows that are independent or not, that take time or memory."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.models import _bytes, _value


def wide_mlp(seed: int = 0, width: int = 1024, hidden: int = 4096) -> bytes:
    """X float [n, width] -> y float [n, width]: two dense layers, 34 MB of weights by default."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (width, hidden), "w2": (hidden, width)}
    constants = [
        numpy_helper.from_array(rng.standard_normal(size, np.float32) * np.float32(0.02), name)
        for name, size in sizes.items()
    ]
    return _bytes(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, ["n", width])],
        [_value("y", TensorProto.FLOAT, ["n", width])],
        constants,
    )


def slow_rows() -> bytes:
    """Rounds int64 [n] -> y int64 [n], the same, after as many products as the largest says."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a_in", "m"], ["a_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            _value("i", TensorProto.INT64, []),
            _value("go_in", TensorProto.BOOL, []),
            _value("a_in", TensorProto.FLOAT, [64, 64]),
        ],
        [_value("go_out", TensorProto.BOOL, []), _value("a_out", TensorProto.FLOAT, [64, 64])],
    )
    eye = np.eye(64, dtype=np.float32)
    return _bytes(
        [
            helper.make_node("ReduceMax", ["rounds"], ["count"], keepdims=0),
            helper.make_node("Loop", ["count", "go", "m"], ["last"], body=body),
            helper.make_node("ReduceMin", ["last"], ["zero"], keepdims=0),
            helper.make_node("Cast", ["zero"], ["nothing"], to=TensorProto.INT64),
            helper.make_node("Add", ["rounds", "nothing"], ["y"]),
        ],
        [_value("rounds", TensorProto.INT64, ["n"])],
        [_value("y", TensorProto.INT64, ["n"])],
        [numpy_helper.from_array(eye, "m"), numpy_helper.from_array(np.array(True), "go")],
    )


def centred() -> bytes:
    """X float [n, 4] -> y float [n, 4]: x less the mean of all rows, so that rows are not alone."""
    return _bytes(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, ["n", 4])],
        [_value("y", TensorProto.FLOAT, ["n", 4])],
    )


def lookup() -> bytes:
    """Index int64 [n] -> y float [n, 2]: rows of a table of four; another index is an error."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    return _bytes(
        [helper.make_node("Gather", ["table", "index"], ["y"], axis=0)],
        [_value("index", TensorProto.INT64, ["n"])],
        [_value("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(table, "table")],
    )


def greedy_rows(megabytes: int) -> bytes:
    """X float [n, 1] -> y float [n, 1]: fills so many megabytes for each row on the way, twice."""
    size = numpy_helper.from_array(np.array([1, megabytes * 2**18], np.int64), "size")
    return _bytes(
        [
            helper.make_node("Expand", ["x", "size"], ["big"]),
            helper.make_node("Exp", ["big"], ["bigger"]),
            helper.make_node("ReduceMax", ["bigger"], ["y"], axes=[1], keepdims=1),
        ],
        [_value("x", TensorProto.FLOAT, ["n", 1])],
        [_value("y", TensorProto.FLOAT, ["n", 1])],
        [size],
    )


def doubled() -> bytes:
    """X float [n, m, 4] -> y float [n, m, 4], twice x."""
    return _bytes(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [_value("x", TensorProto.FLOAT, ["n", "m", 4])],
        [_value("y", TensorProto.FLOAT, ["n", "m", 4])],
    )
