"""The models that ship with the selftest: one network in two versions, for each kind of file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared import safetensors_file
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Golden, Limits, Role, TensorSpec

FILES: Final[dict[str, tuple[str, Role]]] = {
    "onnxruntime": ("onnx", "onnx"),
    "litert": ("tflite", "tflite"),
}
"""Runtime to the ending and the role of its model; what is not here has no built-in model."""

MODEL: Final = "selftest"
CASES: Final = 3
X: Final = TensorSpec("x", "FP32", [-1, 64])
LABEL: Final = TensorSpec("label", "INT64", [-1])
SCORES: Final = TensorSpec("scores", "FP32", [-1, 10])


class TinyModel(NamedTuple):
    """One version for one runtime and accelerator: its files, and a question with its answer."""

    spec: ModelSpec
    paths: list[Path]
    question: list[float]
    label: int

    @contextmanager
    def opened(self) -> Iterator[list[int]]:
        """Give descriptors of the files, and close them."""
        fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.paths]
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)


def tiny(folder: Path, runtime: str, accelerator: str, version: int) -> TinyModel:
    """Return a version, its files copied into `folder`: installed ones may have other names too."""
    ending, role = FILES[runtime]
    golden = f"tiny-{version}.safetensors"
    names: dict[str, Role] = {f"tiny-{version}.{ending}": role, golden: "golden"}
    data = {name: _copied(folder, name) for name in names}
    entries = [
        FileEntry(name, sha256_digest(data[name]), len(data[name]), role)
        for name, role in names.items()
    ]
    digest = sha256_digest(f"{runtime} {accelerator} {version}".encode())
    spec = ModelSpec(
        model=MODEL, version=f"{version}.0.0", digest=digest, runtime=runtime,
        accelerator=accelerator, providers=[], files=entries, inputs=[X], outputs=[LABEL, SCORES],
        limits=Limits(), golden=Golden(golden, CASES), threads=1,
    )  # fmt: skip
    tensors = safetensors_file.decode(data[golden])
    question = [float(v) for v in memoryview(tensors["0.input.x"].data).cast("f")]
    label = memoryview(tensors["0.output.label"].data).cast("q")[0]
    return TinyModel(spec, [folder / name for name in names], question, label)


def _copied(folder: Path, name: str) -> bytes:
    with resources.as_file(resources.files("edgefleet_agent.selftest") / "data" / name) as path:
        shutil.copyfile(path, folder / name)
    return (folder / name).read_bytes()
