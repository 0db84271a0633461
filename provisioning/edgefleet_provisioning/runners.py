"""A model, loaded on the publisher's machine by the runtime that devices have for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgefleet_provisioning.arrays import Arrays
from edgefleet_provisioning.errors import LintError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import RuntimeName
from edgefleet_shared.tflite_file import DEFAULT_SIGNATURE

Run = Callable[[Arrays], Arrays]
"""Takes inputs and gives outputs, both by name. Its errors share no base but Exception."""

LIBRARIES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}


def load(model: Path, runtime: RuntimeName) -> Run:
    """Return a model, loaded on the CPU with one thread.

    Raises:
        LintError: The runtime refuses the model (code `runtime_refuses`).
        InvalidInputError: The runtime is not installed here (code `missing_extra`).
    """
    return _load_tflite(model) if runtime == "litert" else _load_onnx(model)


def library(runtime: RuntimeName) -> str:
    """Return the distribution that runs models of a runtime here."""
    return _tflite()[0] if runtime == "litert" else "onnxruntime"


def _load_onnx(model: Path) -> Run:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels phone home unless told before import
    import onnxruntime  # 30 MB that no other command needs

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common root but this
        raise LintError(
            f"onnxruntime {onnxruntime.__version__} refuses the model: {str(error)[:300]}.",
            code="runtime_refuses",
            hint="Devices would refuse it too; export it again, perhaps for an older opset.",
        ) from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _tflite() -> tuple[str, Any]:
    for name, package in LIBRARIES.items():
        try:
            return name, import_module(f"{package}.interpreter")
        except ImportError:
            continue
    raise InvalidInputError(
        "TFLite models are published where a TFLite runtime is installed, and here is none.",
        code="missing_extra",
        hint="Install edgefleet[litert].",
    )


def _load_tflite(model: Path) -> Run:
    name, module = _tflite()
    try:
        interpreter = module.Interpreter(model_path=str(model), num_threads=1)
        keys = list(interpreter.get_signature_list())
    except Exception as error:  # its errors have no common root but this
        raise LintError(
            f"{name} {version(name)} refuses the model: {str(error)[:300]}.",
            code="runtime_refuses",
            hint="Devices would refuse it too; convert it again.",
        ) from error
    if keys:
        key = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in keys else keys[0]
        runner = interpreter.get_signature_runner(key)
        return lambda inputs: dict(runner(**inputs))
    takes = {one["name"]: one["index"] for one in interpreter.get_input_details()}
    gives = {one["name"]: one["index"] for one in interpreter.get_output_details()}

    def run(inputs: Arrays) -> Arrays:
        for tensor, array in inputs.items():
            interpreter.resize_tensor_input(takes[tensor], array.shape)
        interpreter.allocate_tensors()
        for tensor, array in inputs.items():
            interpreter.set_tensor(takes[tensor], array)
        interpreter.invoke()
        return {tensor: interpreter.get_tensor(index) for tensor, index in gives.items()}

    return run
