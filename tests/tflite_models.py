"""Tiny TFLite models that do one thing each, written without TensorFlow.

By the object interface of the schema that ai-edge-litert ships. Where that library is not installed
`schema_py_generated` is looked for on the path: one generated file that needs flatbuffers alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import flatbuffers
import numpy as np

try:
    s: Any = import_module("ai_edge_litert.schema_py_generated")
except ImportError:
    s = import_module("schema_py_generated")

TYPES = {
    "float32": s.TensorType.FLOAT32, "int8": s.TensorType.INT8, "int32": s.TensorType.INT32,
    "int64": s.TensorType.INT64, "bool": s.TensorType.BOOL, "uint8": s.TensorType.UINT8,
    "float16": s.TensorType.FLOAT16, "str": s.TensorType.STRING,
}  # fmt: skip
DATATYPES = {
    s.TensorType.FLOAT32: "FP32", s.TensorType.INT8: "INT8", s.TensorType.INT32: "INT32",
    s.TensorType.INT64: "INT64", s.TensorType.BOOL: "BOOL", s.TensorType.UINT8: "UINT8",
    s.TensorType.FLOAT16: "FP16", s.TensorType.STRING: "BYTES",
}  # fmt: skip


class Net:
    """One subgraph in the making; all of a model share its buffers and operator codes."""

    def __init__(self, parent: Net | None = None) -> None:
        self.graph = s.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.name = "main"
        if parent is None:
            self.model = s.ModelT()
            self.model.version, self.model.description = 3, "test"
            self.model.operatorCodes, self.model.subgraphs = [], []
            self.model.buffers = [s.BufferT()]
        else:
            self.model = parent.model
        self.model.subgraphs.append(self.graph)

    def tensor(self, name, shape, kind="float32", data=None, scale=None, zero=0) -> int:
        """Add a tensor and return its index; -1 in the shape varies, `data` makes it constant."""
        tensor = s.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name, TYPES[kind], True
        tensor.shape = [1 if size == -1 else size for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        if data is not None:
            buffer = s.BufferT()
            raw = np.ascontiguousarray(data, kind).tobytes()
            buffer.data = np.frombuffer(raw, np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scale is not None:
            quantization = s.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = [scale], [zero]
            tensor.quantization = quantization
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, name, array) -> int:
        """Add a constant and return its index."""
        return self.tensor(name, array.shape, str(array.dtype), array)

    def op(self, name, inputs, outputs, custom="", **options) -> Any:
        """Add an operator: its builtin name, and the fields of its options; return it."""
        operator = s.OperatorT()
        operator.opcodeIndex = self._code(name, custom)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options:
            kind = options.pop("kind", f"{''.join(p.title() for p in name.split('_'))}Options")
            made = getattr(s, f"{kind}T")()
            for key, value in options.items():
                assert hasattr(made, key), key
                setattr(made, key, value)
            operator.builtinOptionsType = getattr(s.BuiltinOptions, kind)
            operator.builtinOptions = made
        self.graph.operators.append(operator)
        return operator

    def _code(self, name: str, custom: str) -> int:
        code = s.OperatorCodeT()
        code.builtinCode = getattr(s.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = {"FILL": 1, "BROADCAST_TO": 2}.get(name, 1)
        code.customCode = custom or None
        for index, known in enumerate(self.model.operatorCodes):
            if (known.builtinCode, known.customCode) == (code.builtinCode, code.customCode):
                return index
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def ends(self, inputs, outputs) -> None:
        """Say which tensors go in and come out."""
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)

    def sign(self, key="serving_default", inputs=None, outputs=None) -> None:
        """Add a signature: name to tensor index; by default the tensors' own names."""
        signature = s.SignatureDefT()
        signature.signatureKey = key
        signature.subgraphIndex = self.model.subgraphs.index(self.graph)
        signature.inputs = self._maps(inputs, self.graph.inputs)
        signature.outputs = self._maps(outputs, self.graph.outputs)
        self.model.signatureDefs = [*(self.model.signatureDefs or []), signature]

    def _maps(self, named, indices) -> list[Any]:
        named = named or {self.graph.tensors[index].name: index for index in indices}
        found = []
        for name, index in named.items():
            one = s.TensorMapT()
            one.name, one.tensorIndex = name, index
            found.append(one)
        return found

    def data(self) -> bytes:
        """Return the file's bytes."""
        return pack(self.model)


def pack(model: Any) -> bytes:
    """Return the bytes of a model object."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpack(data: bytes) -> Any:
    """Return the model object of some bytes, to be changed."""
    return s.ModelT.InitFromPackedBuf(data, 0)


def linear(scale: float = 1.0, width: int = 4, *, signed: bool = True) -> bytes:
    """X float [n, width] -> y float [n, 2]: every element scale * sum(x)."""
    net = Net()
    x, y = net.tensor("x", [-1, width]), net.tensor("y", [-1, 2])
    w = net.constant("w", np.full((2, width), scale, np.float32))
    net.op("FULLY_CONNECTED", [x, w, -1], [y], kind="FullyConnectedOptions", keepNumDims=False)
    net.ends([x], [y])
    if signed:
        net.sign()
    return net.data()


def weights(seed: int) -> dict[str, np.ndarray]:
    """Return the weights that `tests.models.mlp` has too."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def mlp(seed: int = 0, *, signed: bool = True) -> bytes:
    """X float [n, 64] -> label int64 [n], scores float [n, 10]: 64-32-10, random weights."""
    w, net = weights(seed), Net()
    x, h = net.tensor("x", [-1, 64]), net.tensor("h", [-1, 32])
    scores, label = net.tensor("scores", [-1, 10]), net.tensor("label", [-1], "int64")
    first = [net.constant("w1", w["w1"].T.copy()), net.constant("b1", w["b1"])]
    second = [net.constant("w2", w["w2"].T.copy()), net.constant("b2", w["b2"])]
    relu = s.ActivationFunctionType.RELU
    net.op("FULLY_CONNECTED", [x, *first], [h], fusedActivationFunction=relu)
    net.op("FULLY_CONNECTED", [h, *second], [scores], fusedActivationFunction=0)
    axis = net.constant("axis", np.array([1], np.int32))
    net.op("ARG_MAX", [scores, axis], [label], outputType=s.TensorType.INT64)
    net.ends([x], [label, scores])
    if signed:
        net.sign()
    return net.data()


def conv(seed: int = 0) -> bytes:
    """Image float [1, 8, 8, 3] -> p float [1, 5]: 3x3 convolution, ReLU, mean, dense, softmax."""
    rng, net = np.random.default_rng(seed), Net()
    kernel = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    dense = rng.normal(size=(5, 4)).astype(np.float32)
    image, c = net.tensor("image", [1, 8, 8, 3]), net.tensor("c", [1, 6, 6, 4])
    m, d, p = net.tensor("m", [1, 4]), net.tensor("d", [1, 5]), net.tensor("p", [1, 5])
    k, b = net.constant("k", kernel), net.constant("b", np.arange(4, dtype=np.float32))
    net.op("CONV_2D", [image, k, b], [c], kind="Conv2DOptions", padding=s.Padding.VALID,
           strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1,
           fusedActivationFunction=s.ActivationFunctionType.RELU)  # fmt: skip
    axes = net.constant("axes", np.array([1, 2], np.int32))
    net.op("MEAN", [c, axes], [m], kind="ReducerOptions", keepDims=False)
    net.op("FULLY_CONNECTED", [m, net.constant("dense", dense), -1], [d], keepNumDims=False)
    net.op("SOFTMAX", [d], [p], beta=1.0)
    net.ends([image], [p])
    net.sign(outputs={"probabilities": p})
    return net.data()


def conv_answer(image: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return what `conv` must answer, computed by numpy."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    dense = rng.normal(size=(5, 4)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (3, 3), (0, 1))
    found = np.einsum("hwcij,oijc->hwo", windows, kernel) + np.arange(4, dtype=np.float32)
    scores = np.maximum(found, 0).mean((0, 1)) @ dense.T
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def quantised() -> bytes:
    """Q int8 [1, 4] -> r int8 [1, 2], scales 0.5 and 1: r = 2 * sum(q) / 4 rounded, clipped."""
    net = Net()
    q = net.tensor("q", [1, 4], "int8", scale=0.5)
    r = net.tensor("r", [1, 2], "int8", scale=1.0)
    w = net.tensor("w", [2, 4], "int8", np.full((2, 4), 64, np.int8), scale=1 / 64)
    b = net.tensor("b", [2], "int32", np.zeros(2, np.int32), scale=0.5 / 64)
    net.op("FULLY_CONNECTED", [q, w, b], [r], keepNumDims=False)
    net.ends([q], [r])
    net.sign()
    return net.data()


def logarithm() -> bytes:
    """X float [n] -> y float [n]: NaN for negative x."""
    net = Net()
    x, y = net.tensor("x", [-1]), net.tensor("y", [-1])
    net.op("LOG", [x], [y])
    net.ends([x], [y])
    return net.data()


def greedy(megabytes: int) -> bytes:
    """X float [1] -> y float [1]: fills so many megabytes on the way, twice."""
    net = Net()
    x, one, y = net.tensor("x", [1]), net.tensor("one", []), net.tensor("y", [1])
    big = net.tensor("big", [megabytes * 2**18])
    dims = net.constant("dims", np.array([megabytes * 2**18], np.int32))
    none, axis = net.constant("none", np.zeros(0, np.int32)), net.constant("a", np.zeros(1, "i4"))
    net.op("RESHAPE", [x, none], [one], newShape=[])
    bigger = net.tensor("bigger", [megabytes * 2**18])
    net.op("FILL", [dims, one], [big])
    net.op("NEG", [big], [bigger])
    net.op("REDUCE_MAX", [bigger, axis], [y], kind="ReducerOptions", keepDims=True)
    net.ends([x], [y])
    return net.data()


def slow() -> bytes:
    """Rounds int32 [1] -> y float [1, 128]: so many products with a 128 x 128 matrix, by WHILE."""
    net = Net()
    rounds, last = net.tensor("rounds", [1], "int32"), net.tensor("last", [1], "int32")
    start, y = net.constant("s", np.ones((1, 128), np.float32)), net.tensor("y", [1, 128])
    net.op("WHILE", [rounds, start], [last, y], condSubgraphIndex=1, bodySubgraphIndex=2)
    net.ends([rounds], [y])
    cond = Net(net)
    left, a = cond.tensor("left", [1], "int32"), cond.tensor("a", [1, 128])
    go, zero = cond.tensor("go", [1], "bool"), cond.constant("zero", np.zeros(1, np.int32))
    cond.op("GREATER", [left, zero], [go])
    cond.ends([left, a], [go])
    body = Net(net)
    left, a = body.tensor("left", [1], "int32"), body.tensor("a", [1, 128])
    less, b = body.tensor("less", [1], "int32"), body.tensor("b", [1, 128])
    one, m = body.constant("one", np.ones(1, "i4")), body.constant("m", np.eye(128, dtype="f4"))
    body.op("SUB", [left, one], [less], fusedActivationFunction=0)
    body.op("FULLY_CONNECTED", [a, m, -1], [b], keepNumDims=False)
    body.ends([left, a], [less, b])
    return net.data()


def echo_text() -> bytes:
    """T string [1] -> u string [1]: no adapter here runs it."""
    net = Net()
    t, u = net.tensor("t", [1], "str"), net.tensor("u", [1], "str")
    net.op("RESHAPE", [t, net.constant("one", np.ones(1, np.int32))], [u])
    net.ends([t], [u])
    return net.data()


def signature(data: bytes) -> tuple[list[tuple[str, str, list[int]]], ...]:
    """Return (name, datatype, shape) of inputs and of outputs, as the package shall say them."""
    model = unpack(data)
    graph, found = model.subgraphs[0], []
    signed = model.signatureDefs[0] if model.signatureDefs else None
    for kind in ("inputs", "outputs"):
        named = [(one.name, one.tensorIndex) for one in getattr(signed, kind)] if signed else [
            (graph.tensors[index].name, index) for index in getattr(graph, kind)
        ]  # fmt: skip
        found.append([_described(_text(name), graph.tensors[index]) for name, index in named])
    return tuple(found)


def _described(name: str, tensor: Any) -> tuple[str, str, list[int]]:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return name, DATATYPES[tensor.type], [int(size) for size in ([] if shape is None else shape)]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else name
