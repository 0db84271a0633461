"""A package: what the publisher says of a version, and the manifest of its variants. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from edgefleet_provisioning import licenses, runners
from edgefleet_provisioning.variant_build import Blob, Built
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name, check_version
from edgefleet_shared.package import Manifest, ReferenceHistogram, RuntimeName
from edgefleet_shared.times import format_time

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
    file_licenses: Mapping[str, str] = {}
    source: str = ""
    signed: str = ""


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


def blobs(
    about: Description, model: Sequence[Blob], data: Sequence[Blob], prefix: str
) -> list[Blob]:
    """Return the files of a variant, licensed and in their place in the package.

    Args:
        about: What licences are said of which files.
        model: The model's files.
        data: Those beside it.
        prefix: The folder of a further variant, with a slash; '' for the first.
    """
    placed = [
        one._replace(entry=structs.replace(one.entry, path=f"{prefix}{one.entry.path}"))
        for one in (*model, *data)
    ]
    own = {path: licenses.check(expression) for path, expression in about.file_licenses.items()}
    return [
        one._replace(entry=structs.replace(one.entry, license=own[one.entry.path]))
        if one.entry.path in own
        else one
        for one in placed
    ]


def check_licensed(about: Description, built: Sequence[Built]) -> None:
    """Check that every licence that is given is of a file that is there.

    Raises:
        InvalidInputError: One is not.
    """
    paths = [blob.entry.path for one in built for blob in one.blobs]
    if foreign := sorted(set(about.file_licenses) - set(paths)):
        raise InvalidInputError(
            f"A licence is given for {foreign[0][:80]!r}, which the package does not have.",
            code="invalid_license",
            hint=f"Its files are {', '.join(paths)}.",
        )


def manifest(
    about: Description,
    built: Sequence[Built],
    reference: Sequence[ReferenceHistogram],
    counters: Counters,
    now: datetime,
) -> Manifest:
    """Return the manifest of a version.

    Args:
        about: What the publisher says.
        built: Its variants, that of the command line first.
        reference: Histograms of a sample, or none.
        counters: Its place among the model's versions.
        now: Aware time of making.
    """
    small = sum(len(label) + 4 for label in about.labels) <= LABELS_IN_MANIFEST
    return Manifest(
        schema=1,
        name=about.name,
        version=about.version,
        release_counter=counters.release,
        security_floor=counters.floor,
        created=format_time(now),
        variants=[one.variant() for one in built],
        license=licenses.check(about.license),
        description=about.description,
        labels=list(about.labels) if small else [],
        reference=list(reference),
        provenance=_provenance(built, about),
    )


def tools(runtimes: Sequence[RuntimeName] = ("onnxruntime",)) -> str:
    """Return the programs that make a package, with their versions, as `name version; ...`."""
    onnx = ["onnx"] if "onnxruntime" in runtimes else []
    names = ["edgefleet", "numpy", *onnx, *(runners.library(name) for name in runtimes)]
    return "; ".join(f"{name} {version(name)}" for name in names)


def _provenance(built: Sequence[Built], about: Description) -> dict[str, str]:
    runtimes = dict.fromkeys(one.report.runtime for one in built)
    said = {
        "producer": built[0].report.producer,
        "source": about.source,
        "signed": about.signed,
        "tools": tools([name for name in runtimes if name != "container"]),
    }
    return {key: value for key, value in said.items() if value}
