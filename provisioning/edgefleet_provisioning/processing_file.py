"""The file of `--processing`: the manifest's steps, in TOML or JSON."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import MANIFEST_MAX_BYTES, TensorSpec
from edgefleet_shared.processing import Processing
from edgefleet_shared.processing_rules import check_labels, outer


def read(path: Path) -> Processing:
    """Return the steps of a file; its name ends in .toml or .json.

    Raises:
        InvalidInputError: It cannot be read, or holds an unknown step or field (code
            `bad_processing`).
    """
    try:
        data = path.read_bytes()
        if len(data) > MANIFEST_MAX_BYTES:
            raise _bad(path, "it is longer than a manifest may be")
        if path.suffix.lower() == ".toml":
            return msgspec.convert(tomllib.loads(data.decode()), Processing)
        return msgspec.json.decode(data, type=Processing)
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise _bad(path, str(error)) from error


def check(
    steps: Processing, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labels: int
) -> None:
    """Check that the steps suit the model, and the labels its classes.

    Raises:
        InvalidInputError: They do not (code `manifest_processing`), or labels are not given.
    """
    outer(steps, inputs, outputs)
    if steps.labelled and not labels:
        raise InvalidInputError(
            "A step of the processing names labels, and none are given.",
            code="bad_processing",
            hint="Give --labels FILE, one label a line.",
        )
    if steps.labelled:
        check_labels(steps, outputs, labels)


def _bad(path: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The processing {path} cannot be read: {why.rstrip('.')}.",
        code="bad_processing",
        hint="docs/reference.md lists the steps and their fields.",
    )
