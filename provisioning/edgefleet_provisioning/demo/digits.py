"""The demo's models: three versions trained on scikit-learn's handwritten digits (real data).

1.0.0 is a logistic regression, 2.0.0 a multi-layer perceptron that is right more often. 3.0.0 is
2.0.0 with a fault that no golden vector shows: an answer holds NaN when one pixel is at its
brightest, and a detour of matrix products makes it at least ten times slower.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

VERSIONS = ("1.0.0", "2.0.0", "3.0.0")
PIXELS = 64
HELD_OUT_SHARE = 0.4
SEED = 7
FAULTY_PIXEL = 20  # bright in some digits, dark in most
BRIGHTEST = 16.0
DETOUR_WIDTH = 512
DETOUR_LAYERS = 12
INTERRUPTED = "Training interrupted"
"""What scikit-learn makes of Ctrl-C: a warning, and a model that is half trained."""


class Digits(NamedTuple):
    """What the demo publishes and asks: folders of files, and the held-out part."""

    models: dict[str, Path]
    golden: Path
    sample: Path
    labels: Path
    held_out: Path
    train_size: int
    held_out_size: int


def build(folder: Path) -> Digits:
    """Train, export and write everything into `folder`; the held-out part is never trained on.

    `held_out` is an npz with `pixels` (n, 64) float32 in 0..16 and `labels` (n,) int64.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    train_x, held_x, train_y, held_y = train_test_split(
        pixels, labels, test_size=HELD_OUT_SHARE, random_state=SEED, stratify=labels
    )
    first = make_pipeline(MinMaxScaler(), LogisticRegression(C=0.1, max_iter=300))
    second = make_pipeline(MinMaxScaler(), MLPClassifier((96,), max_iter=150, random_state=SEED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 150 iterations are enough to be the better one
        warnings.filterwarnings("error", INTERRUPTED, UserWarning)
        try:
            first.fit(train_x, train_y)
            second.fit(train_x, train_y)
        except UserWarning as error:
            raise KeyboardInterrupt from error
        graphs = [_export(first), _export(second)]
    graphs.append(with_fault(graphs[1]))
    # Golden digits leave the faulty pixel below its brightest, so that 3.0.0 passes its own proof.
    calm = train_x[train_x[:, FAULTY_PIXEL] < BRIGHTEST][:8]
    models = {v: folder / f"digits-{v}.onnx" for v in VERSIONS}
    for version, graph in zip(VERSIONS, graphs, strict=True):
        models[version].write_bytes(graph.SerializeToString())
    np.savez(folder / "golden.npz", pixels=calm[:, None, :])
    np.savez(folder / "sample.npz", pixels=train_x)
    np.savez(folder / "held-out.npz", pixels=held_x, labels=held_y.astype(np.int64))
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    return Digits(
        models,
        folder / "golden.npz",
        folder / "sample.npz",
        folder / "labels.txt",
        folder / "held-out.npz",
        len(train_x),
        len(held_x),
    )


def _export(estimator: Any) -> onnx.ModelProto:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model: onnx.ModelProto = to_onnx(
        estimator,
        initial_types=[("pixels", FloatTensorType([None, PIXELS]))],
        options={"zipmap": False},
        target_opset=17,
    )
    return model


def with_fault(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose `probabilities` turn NaN for some inputs and take a long detour.

    probabilities + 0 * (sqrt(15.5 - pixel) + sum(detour(pixels))): the square root of a negative
    number is NaN, and NaN times zero is NaN; for every other input the answer is the old one.
    """
    faulty = onnx.ModelProto()
    faulty.CopyFrom(model)
    graph = faulty.graph
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == "probabilities":
                node.output[index] = "probabilities_before"
        for index, name in enumerate(node.input):
            if name == "probabilities":
                node.input[index] = "probabilities_before"
    random = np.random.default_rng(SEED)
    constants: dict[str, npt.NDArray[Any]] = {
        "fault_index": np.array([FAULTY_PIXEL], dtype=np.int64),
        "fault_edge": np.array(BRIGHTEST - 0.5, dtype=np.float32),
        "fault_zero": np.array(0.0, dtype=np.float32),
        "fault_first": random.normal(0, 0.01, (PIXELS, DETOUR_WIDTH)).astype(np.float32),
        "fault_layer": random.normal(0, 0.01, (DETOUR_WIDTH,) * 2).astype(np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    graph.node.extend(_detour())
    graph.node.extend(
        [
            helper.make_node("Gather", ["pixels", "fault_index"], ["fault_pixel"], axis=1),
            helper.make_node("Sub", ["fault_edge", "fault_pixel"], ["fault_room"]),
            helper.make_node("Sqrt", ["fault_room"], ["fault_root"]),
            helper.make_node("Add", ["fault_root", "fault_sum"], ["fault_both"]),
            helper.make_node("Mul", ["fault_both", "fault_zero"], ["fault_nothing"]),
            helper.make_node("Add", ["probabilities_before", "fault_nothing"], ["probabilities"]),
        ]
    )
    onnx.checker.check_model(faulty)
    return faulty


def _detour() -> list[onnx.NodeProto]:
    nodes = [helper.make_node("MatMul", ["pixels", "fault_first"], ["fault_0"])]
    nodes += [
        helper.make_node("MatMul", [f"fault_{i}", "fault_layer"], [f"fault_{i + 1}"])
        for i in range(DETOUR_LAYERS)
    ]
    last = f"fault_{DETOUR_LAYERS}"
    axis = helper.make_tensor("fault_axes", TensorProto.INT64, [1], [1])
    nodes += [
        helper.make_node("Constant", [], ["fault_axis"], value=axis),
        helper.make_node("ReduceSum", [last, "fault_axis"], ["fault_sum"], keepdims=1),
    ]
    return nodes
