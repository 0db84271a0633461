"""Tiny ONNX models that do one thing each, and their specifications."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared import safetensors_file
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import Batching, FileEntry, Golden, Limits, TensorSpec
from edgefleet_shared.processing import Processing
from edgefleet_shared.safetensors_file import RawTensor

OPSET = 17


def _bytes(nodes, inputs, outputs, constants=()) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def linear(scale: float = 1.0, width: int = 4) -> bytes:
    """X float [n, width] -> y float [n, 2]: every element scale * sum(x)."""
    weights = numpy_helper.from_array(np.full((width, 2), scale, np.float32), "w")
    return _bytes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [_value("x", TensorProto.FLOAT, ["n", width])],
        [_value("y", TensorProto.FLOAT, ["n", 2])],
        [weights],
    )


def mlp(seed: int = 0) -> bytes:
    """X float [n, 64] -> label int64 [n], scores float [n, 10]: 64-32-10, random weights."""
    rng = np.random.default_rng(seed)
    constants = [
        numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
        for name, size in {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}.items()
    ]
    return _bytes(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        [_value("x", TensorProto.FLOAT, ["n", 64])],
        [_value("label", TensorProto.INT64, ["n"]), _value("scores", TensorProto.FLOAT, ["n", 10])],
        constants,
    )


def slow() -> bytes:
    """Rounds int64 [1] -> y float [1, 1]: so many products of 128 x 128 matrices."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["a_in", "m"], ["a_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            _value("i", TensorProto.INT64, []),
            _value("go_in", TensorProto.BOOL, []),
            _value("a_in", TensorProto.FLOAT, [128, 128]),
        ],
        [_value("go_out", TensorProto.BOOL, []), _value("a_out", TensorProto.FLOAT, [128, 128])],
    )
    eye = np.eye(128, dtype=np.float32)
    return _bytes(
        [
            helper.make_node("Squeeze", ["rounds"], ["count"]),
            helper.make_node("Loop", ["count", "go", "m"], ["last"], body=body),
            helper.make_node("ReduceMean", ["last"], ["y"], axes=[0, 1]),
        ],
        [_value("rounds", TensorProto.INT64, [1])],
        [_value("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(eye, "m"), numpy_helper.from_array(np.array(True), "go")],
    )


def partly() -> bytes:
    """X float [4, 4] -> y float: the determinant of the positive part of 2 x, in three nodes."""
    return _bytes(
        [
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("Relu", ["double"], ["positive"]),
            helper.make_node("Det", ["positive"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, [4, 4])],
        [_value("y", TensorProto.FLOAT, [])],
    )


def logarithm() -> bytes:
    """X float [n] -> y float [n]: NaN for negative x."""
    return _bytes(
        [helper.make_node("Log", ["x"], ["y"])],
        [_value("x", TensorProto.FLOAT, ["n"])],
        [_value("y", TensorProto.FLOAT, ["n"])],
    )


def echo_text() -> bytes:
    """T string [n] -> u string [n], the same."""
    return _bytes(
        [helper.make_node("Identity", ["t"], ["u"])],
        [_value("t", TensorProto.STRING, ["n"])],
        [_value("u", TensorProto.STRING, ["n"])],
    )


def halves() -> bytes:
    """X float16 [n] -> y float16 [n], the same."""
    return _bytes(
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", TensorProto.FLOAT16, ["n"])],
        [_value("y", TensorProto.FLOAT16, ["n"])],
    )


def colours(side: int = 8, rows: int | str = 1) -> bytes:
    """X float [rows, 3, side, side] -> y float [rows, 3]: the mean of each channel."""
    return _bytes(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)],
        [_value("x", TensorProto.FLOAT, [rows, 3, side, side])],
        [_value("y", TensorProto.FLOAT, [rows, 3])],
    )


def greedy(megabytes: int) -> bytes:
    """X float [1] -> y float [1]: fills so many megabytes on the way."""
    size = numpy_helper.from_array(np.array([megabytes * 2**18], np.int64), "size")
    return _bytes(
        [
            helper.make_node("Expand", ["x", "size"], ["big"]),
            helper.make_node("Exp", ["big"], ["bigger"]),
            helper.make_node("ReduceMax", ["bigger"], ["y"], axes=[0], keepdims=1),
        ],
        [_value("x", TensorProto.FLOAT, [1])],
        [_value("y", TensorProto.FLOAT, [1])],
        [size],
    )


def convolutions(seed: int = 0, layers: int = 11, channels: int = 256) -> bytes:
    """X float [n, 3, 64, 64] -> y float [n, channels]; each layer beyond two has 2.4 MB (256)."""
    rng = np.random.default_rng(seed)
    nodes, constants, below = [], [], "x"
    widths = [3, 64, *[channels] * (layers - 1)]
    for index, (inward, outward) in enumerate(pairwise(widths)):
        kernel = rng.standard_normal((outward, inward, 3, 3), np.float32) * np.float32(0.03)
        constants += [
            numpy_helper.from_array(kernel, f"w{index}"),
            numpy_helper.from_array(np.zeros(outward, np.float32), f"b{index}"),
        ]
        stride = 2 if index in {0, 1, 2, 4} else 1
        nodes += [
            helper.make_node(
                "Conv", [below, f"w{index}", f"b{index}"], [f"c{index}"],
                pads=[1] * 4, strides=[stride] * 2,
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]  # fmt: skip
        below = f"r{index}"
    nodes += [
        helper.make_node("GlobalAveragePool", [below], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    return _bytes(
        nodes,
        [_value("x", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [_value("y", TensorProto.FLOAT, ["n", channels])],
        constants,
    )


_KINDS = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.INT64: "INT64",
    TensorProto.STRING: "BYTES",
}  # fmt: skip


def cnn(seed: int = 0) -> bytes:
    """Image float [n, 3, 224, 224] -> scores float [n, 100]: six convolutions, some 8 ms a core."""
    rng = np.random.default_rng(seed)
    sizes = [(3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)]
    nodes, constants, name = [], [], "image"
    for index, (before, after, stride) in enumerate(sizes):
        weights = rng.normal(scale=(2 / (9 * before)) ** 0.5, size=(after, before, 3, 3))
        constants.append(numpy_helper.from_array(weights.astype(np.float32), f"w{index}"))
        nodes += [
            helper.make_node(
                "Conv", [name, f"w{index}"], [f"c{index}"], strides=[stride] * 2, pads=[1] * 4
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        name = f"r{index}"
    head = rng.normal(scale=0.06, size=(256, 100)).astype(np.float32)
    constants.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    return _bytes(
        nodes,
        [_value("image", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [_value("scores", TensorProto.FLOAT, ["n", 100])],
        constants,
    )


def golden_bytes(cases) -> bytes:
    """Golden file of [(inputs, outputs), ...], each a mapping of name to array."""
    names = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "int8": "INT8"}
    tensors = {}
    for index, (inputs, outputs) in enumerate(cases):
        for kind, arrays in (("input", inputs), ("output", outputs)):
            for name, array in arrays.items():
                raw = RawTensor(names[str(array.dtype)], array.shape, array.tobytes())
                tensors[f"{index}.{kind}.{name}"] = raw
    return safetensors_file.encode(tensors)


class Package:
    """A model's files in a folder, ready to be loaded."""

    def __init__(self, spec: ModelSpec, paths: list[Path]) -> None:
        self.spec = spec
        self.paths = paths

    def open(self) -> list[int]:
        """Open descriptors, in the order of the specification."""
        return [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.paths]


def package(
    folder: Path,
    model: bytes,
    *,
    name: str = "m",
    version: str = "1.0.0",
    golden: bytes | None = None,
    cases: int = 0,
    extra: Mapping[str, bytes] | None = None,
    limits: Limits | None = None,
    runtime: str = "",
    accelerator: str = "cpu",
    labels: bytes | None = None,
    processing: Processing | None = None,
    batching: Batching | None = None,
    **options,
) -> Package:
    """Write a model, ONNX or TFLite, into `folder` and describe it as its own graph does."""
    light = model[4:8] == b"TFL3"
    files = {"model.tflite": (model, "tflite")} if light else {"model.onnx": (model, "onnx")}
    inputs, outputs = _tflite_signature(model) if light else _onnx_signature(model)
    files |= {path: (data, "onnx_external") for path, data in (extra or {}).items()}
    if golden is not None:
        files["golden.safetensors"] = (golden, "golden")
    if labels is not None:
        files["labels.txt"] = (labels, "labels")
    entries, paths = [], []
    for path, (data, role) in files.items():
        digest = sha256_digest(data)
        target = folder / digest.partition(":")[2]
        target.write_bytes(data)
        paths.append(target)
        entries.append(FileEntry(path, digest, len(data), role))
    signature = sha256_digest(f"{name} {version} {[e.digest for e in entries]}".encode())
    spec = ModelSpec(
        model=name, version=version, digest=signature,
        runtime=runtime or ("litert" if light else "onnxruntime"), accelerator=accelerator,
        providers=[] if light else ["CPUExecutionProvider"], files=entries,
        inputs=inputs, outputs=outputs,
        limits=limits or Limits(),
        golden=Golden("golden.safetensors", cases) if golden is not None else None,
        session_options=options, processing=processing, batching=batching,
    )  # fmt: skip
    return Package(spec, paths)


def _tflite_signature(model: bytes) -> list[list[TensorSpec]]:
    from tests.tflite_models import signature  # needs a library that is not everywhere

    return [[TensorSpec(*one) for one in tensors] for tensors in signature(model)]


def _onnx_signature(model: bytes) -> list[list[TensorSpec]]:
    if not model:
        return [[], []]
    graph = onnx.load_model_from_string(model).graph
    return [_signature(graph.input), _signature(graph.output)]


def _signature(values) -> list[TensorSpec]:
    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        found.append(TensorSpec(value.name, _KINDS[tensor.elem_type], shape))
    return found
