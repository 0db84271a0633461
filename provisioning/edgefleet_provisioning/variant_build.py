"""One variant of a package: its files by digest, and its part of the manifest.

Pure but for hashing external data files, which may be too large for memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.lint import LintReport
from edgefleet_provisioning.lint_operators import MIN_RUNTIME
from edgefleet_provisioning.variants_file import Wanted
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import (
    FileEntry,
    Golden,
    Limits,
    Role,
    RuntimeName,
    RuntimeNeed,
    Variant,
)
from edgefleet_shared.processing import Processing

MODEL_PATHS: dict[RuntimeName, tuple[str, Role]] = {
    "onnxruntime": ("model.onnx", "onnx"), "litert": ("model.tflite", "tflite"),
}  # fmt: skip
GOLDEN_PATH, LABELS_PATH = "golden.safetensors", "labels.txt"
MEGABYTE = 2**20


class Blob(NamedTuple):
    """One file of a package; its bytes, or where they lie."""

    entry: FileEntry
    source: bytes | Path


class Built(NamedTuple):
    """One variant, whole; `report` is of its model, or of the first one's for a container."""

    wanted: Wanted
    report: LintReport
    blobs: list[Blob]
    cases: int
    processing: Processing | None = None

    def variant(self) -> Variant:
        """Return its part of the manifest."""
        wanted, report = self.wanted, self.report
        golden = next((b.entry.path for b in self.blobs if b.entry.role == "golden"), "")
        size_mb = sum(blob.entry.size for blob in self.blobs) // MEGABYTE + 1
        return Variant(
            id=wanted.id,
            hardware=sorted(set(wanted.hardware)),
            accelerator=wanted.accelerator,
            runtime=_runtime(wanted, report),
            files=[blob.entry for blob in self.blobs],
            inputs=report.inputs,
            outputs=report.outputs,
            limits=Limits(
                # Weights are held twice while they are packed for the processor.
                memory_mb=wanted.memory_mb or max(Limits().memory_mb, 256 + 3 * size_mb),
                load_s=wanted.load_s,
                disk_mb=max(Limits().disk_mb, 2 * size_mb),
                device_memory_mb=wanted.device_memory_mb,
            ),
            golden=_golden(wanted, golden, self.cases) if golden else None,
            session_options=wanted.session_options,
            fallback=wanted.fallback,
            fpga=wanted.fpga,
            processing=self.processing,
            batching=wanted.batching,
        )


def _golden(wanted: Wanted, path: str, cases: int) -> Golden:
    """A core whose answers were given is compared in every bit; others by the tolerances."""
    if wanted.is_core and wanted.golden:
        return Golden(path, cases, rtol=0.0, atol=0.0)
    return Golden(path, cases)


def _runtime(wanted: Wanted, report: LintReport) -> RuntimeNeed:
    if wanted.is_core:
        return RuntimeNeed("registers")
    if wanted.image:
        return RuntimeNeed("container", image=wanted.image, container=wanted.container)
    if report.runtime == "litert":
        return RuntimeNeed("litert", "", wanted.providers, cpu_fallback=wanted.cpu_fallback)
    return RuntimeNeed(
        "onnxruntime",
        MIN_RUNTIME,
        wanted.providers or ["CPUExecutionProvider"],
        report.opsets,
        cpu_fallback=wanted.cpu_fallback,
    )


def model_blobs(report: LintReport, folder: Path, spdx: str) -> list[Blob]:
    """Return a model's files.

    Args:
        report: The model, free of findings.
        folder: Where its external data lies.
        spdx: Its licence.

    Raises:
        LintError: An external data file is named like another file of the package.
    """
    path, role = MODEL_PATHS[report.runtime]
    found = [blob(path, role, report.data, spdx)]
    for location in report.external:
        if location.lower() in {path, GOLDEN_PATH, LABELS_PATH}:
            raise LintError(
                f"The model keeps data in {location!r}, a name that the package uses itself.",
                code="external_data_path",
                hint="Save the external data under another name, for example weights.bin.",
            )
        digest, size = hash_file(folder / location)
        entry = FileEntry(location, digest, size, "onnx_external", license=spdx)
        found.append(Blob(entry, folder / location))
    return found


def data_blobs(golden: bytes, labels: Sequence[str]) -> list[Blob]:
    """Return the files beside a model: golden vectors and labels, those that there are."""
    found = [blob(GOLDEN_PATH, "golden", golden, "")] if golden else []
    if labels:
        text = "".join(f"{label}\n" for label in labels).encode()
        found.append(blob(LABELS_PATH, "labels", text, "", "text/plain"))
    return found


def hash_file(path: Path) -> tuple[str, int]:
    """Return digest and size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(MEGABYTE):
            digest.update(part)
            size += len(part)
    return f"sha256:{digest.hexdigest()}", size


def blob(
    path: str, role: Role, data: bytes, spdx: str, media: str = "application/octet-stream"
) -> Blob:
    """Return a file of which the bytes are at hand."""
    return Blob(FileEntry(path, sha256_digest(data), len(data), role, media, spdx), data)
