"""A package: the model's files by digest, and the manifest that binds them.

Pure but for hashing external data files, which may be too large for memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from edgefleet_provisioning import licenses
from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.lint import LintReport
from edgefleet_provisioning.lint_operators import MIN_RUNTIME
from edgefleet_provisioning.onnx_walk import opsets_of
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name, check_version, sha256_digest
from edgefleet_shared.package import (
    FileEntry,
    Golden,
    Limits,
    Manifest,
    ReferenceHistogram,
    Role,
    RuntimeNeed,
    Variant,
)
from edgefleet_shared.processing import Processing
from edgefleet_shared.times import format_time

MODEL_PATH, GOLDEN_PATH, LABELS_PATH = "model.onnx", "golden.safetensors", "labels.txt"
MEGABYTE = 2**20
MAX_SOURCE = 500  # characters
LABELS_IN_MANIFEST = 16 * 1024  # bytes; more labels are in their file alone
HARDWARE = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Description(NamedTuple):
    """What the publisher says about a version; None where the model itself decides.

    Attributes:
        license: SPDX expression of the model and its weights; '' where nobody says.
        file_licenses: Of files that have another, by their path in the package.
        source: Where the model comes from, for people: a commit, a run, a URL.
        signed: Which signature by whom was demanded of the model, and found.
    """

    name: str
    version: str
    license: str = ""
    description: str = ""
    hardware: Sequence[str] = ("*",)
    memory_mb: int | None = None
    load_s: int = 60
    labels: Sequence[str] = ()
    processing: Processing | None = None
    file_licenses: Mapping[str, str] = {}
    source: str = ""
    signed: str = ""


class Blob(NamedTuple):
    """One file of a package; its bytes, or where they lie."""

    entry: FileEntry
    source: bytes | Path


class Counters(NamedTuple):
    """What orders the versions of a model: its own place, and the lowest that may still run."""

    release: int
    floor: int


def check(about: Description) -> None:
    """Check what the publisher says.

    Raises:
        InvalidInputError: With the first thing that cannot be.
    """
    check_name(about.name, "model")
    check_version(about.version)
    for expression in (about.license, *about.file_licenses.values()):
        licenses.check(expression)
    if len(about.source) > MAX_SOURCE or not about.source.isprintable():
        raise InvalidInputError(
            f"--source is one line of at most {MAX_SOURCE} characters.", code="usage"
        )
    for hardware in about.hardware:
        if not HARDWARE.fullmatch(hardware):
            raise InvalidInputError(
                f"{hardware[:80]!r} cannot be a hardware id.",
                code="invalid_hardware",
                hint="For example rpi5, jetson-orin, or * for any.",
            )
    if (about.memory_mb is not None and about.memory_mb < 1) or about.load_s < 1:
        raise InvalidInputError("--memory-mb and --load-s must be positive.", code="usage")


def read_labels(path: Path) -> list[str]:
    """Return the labels of a text file, one a line.

    Raises:
        InvalidInputError: Missing, not UTF-8, or without a label.
    """
    try:
        labels = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "they are not UTF-8"
        raise InvalidInputError(
            f"The labels {path} cannot be read: {why}.",
            code="bad_labels",
            hint="Give a UTF-8 text file with one label a line.",
        ) from error
    while labels and not labels[-1]:
        labels.pop()
    if not labels or "" in labels:
        raise InvalidInputError(
            f"The labels {path} have an empty line." if labels else f"{path} holds no label.",
            code="bad_labels",
            hint="Line 1 is class 0, and so on; none may be empty.",
        )
    return labels


def blobs(report: LintReport, folder: Path, about: Description, golden: bytes) -> list[Blob]:
    """Return the files of a package.

    Args:
        report: The model, free of findings.
        folder: Where its external data lies.
        about: Its labels become a file.
        golden: The safetensors file, empty if there is none.

    Raises:
        LintError: An external data file is named like another file of the package.
    """
    spdx = licenses.check(about.license)
    found = [_blob(MODEL_PATH, "onnx", report.data, spdx)]
    for location in report.external:
        if location.lower() in {MODEL_PATH, GOLDEN_PATH, LABELS_PATH}:
            raise LintError(
                f"The model keeps data in {location!r}, a name that the package uses itself.",
                code="external_data_path",
                hint="Save the external data under another name, for example weights.bin.",
            )
        digest, size = hash_file(folder / location)
        entry = FileEntry(location, digest, size, "onnx_external", license=spdx)
        found.append(Blob(entry, folder / location))
    if golden:
        found.append(_blob(GOLDEN_PATH, "golden", golden, ""))
    if about.labels:
        text = "".join(f"{label}\n" for label in about.labels).encode()
        found.append(_blob(LABELS_PATH, "labels", text, "", "text/plain"))
    return _licensed(found, about.file_licenses)


def manifest(
    report: LintReport,
    about: Description,
    files: Sequence[Blob],
    reference: Sequence[ReferenceHistogram],
    cases: int,
    counters: Counters,
    now: datetime,
) -> Manifest:
    """Return the manifest of a version with one CPU variant.

    Args:
        report: The model.
        about: What the publisher says.
        files: As `blobs` gives them.
        reference: Histograms of a sample, or none.
        cases: Golden cases in the golden file; 0 if there is none.
        counters: Its place among the model's versions.
        now: Aware time of making.
    """
    size_mb = sum(blob.entry.size for blob in files) // MEGABYTE + 1
    small = sum(len(label) + 4 for label in about.labels) <= LABELS_IN_MANIFEST
    opsets = {domain or "ai.onnx": version for domain, version in opsets_of(report.model).items()}
    variant = Variant(
        id="cpu",
        hardware=sorted(set(about.hardware)),
        accelerator="cpu",
        runtime=RuntimeNeed("onnxruntime", MIN_RUNTIME, ["CPUExecutionProvider"], opsets),
        files=[blob.entry for blob in files],
        inputs=report.inputs,
        outputs=report.outputs,
        limits=Limits(
            # Weights are held twice while they are packed for the processor.
            memory_mb=about.memory_mb or max(Limits().memory_mb, 256 + 3 * size_mb),
            load_s=about.load_s,
            disk_mb=max(Limits().disk_mb, 2 * size_mb),
        ),
        golden=Golden(GOLDEN_PATH, cases) if cases else None,
        processing=about.processing,
    )
    return Manifest(
        schema=1,
        name=about.name,
        version=about.version,
        release_counter=counters.release,
        security_floor=counters.floor,
        created=format_time(now),
        variants=[variant],
        license=licenses.check(about.license),
        description=about.description,
        labels=list(about.labels) if small else [],
        reference=list(reference),
        provenance=_provenance(report, about),
    )


def hash_file(path: Path) -> tuple[str, int]:
    """Return digest and size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(MEGABYTE):
            digest.update(part)
            size += len(part)
    return f"sha256:{digest.hexdigest()}", size


def tools() -> str:
    """Return the programs that make a package, with their versions, as `name version; ...`."""
    names = ("edgefleet", "numpy", "onnx", "onnxruntime")
    return "; ".join(f"{name} {version(name)}" for name in names)


def _provenance(report: LintReport, about: Description) -> dict[str, str]:
    producer = f"{report.model.producer_name} {report.model.producer_version}".strip()
    said = {
        "producer": producer[:200],
        "source": about.source,
        "signed": about.signed,
        "tools": tools(),
    }
    return {key: value for key, value in said.items() if value}


def _licensed(found: list[Blob], by_path: Mapping[str, str]) -> list[Blob]:
    """Return files with the licences that they have of their own.

    Raises:
        InvalidInputError: A licence is for a file that is not there.
    """
    paths = [blob.entry.path for blob in found]
    if foreign := sorted(set(by_path) - set(paths)):
        raise InvalidInputError(
            f"A licence is given for {foreign[0][:80]!r}, which the package does not have.",
            code="invalid_license",
            hint=f"Its files are {', '.join(paths)}.",
        )
    own = {path: licenses.check(expression) for path, expression in by_path.items()}
    return [
        blob._replace(entry=structs.replace(blob.entry, license=own[blob.entry.path]))
        if blob.entry.path in own
        else blob
        for blob in found
    ]


def _blob(
    path: str, role: Role, data: bytes, spdx: str, media: str = "application/octet-stream"
) -> Blob:
    return Blob(FileEntry(path, sha256_digest(data), len(data), role, media, spdx), data)
