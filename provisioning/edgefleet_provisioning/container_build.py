"""A container variant: an image by digest, and the signature that its server answers to.

Nothing here looks into the image or asks a registry: the digest is what is signed, and each device
proves the image by the golden vectors before it serves.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgefleet_provisioning import golden
from edgefleet_provisioning.arrays import Arrays
from edgefleet_provisioning.lint import LintReport
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import TensorSpec

VARIANT = "container"
"""The id of the variant that `--image` makes."""


class Tensors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `--tensors` holds: inputs and outputs as a manifest has them."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def read_tensors(path: Path) -> Tensors:
    """Return the signature in a JSON file.

    Raises:
        InvalidInputError: It cannot be read, or is none (code `bad_tensors`).
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tensors)
    except (OSError, msgspec.DecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(
            f"The tensors {path} cannot be read: {why}.",
            code="bad_tensors",
            hint='As {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}], '
            '"outputs": [...]}.',
        ) from error


def report(tensors: Tensors) -> LintReport:
    """Return what a lint would say of an image: its signature, and nothing else."""
    return LintReport("container", b"", [], tensors.inputs, tensors.outputs, [], 0, 0, {}, "")


def cases_of(arrays: Arrays, tensors: Tensors) -> list[golden.Case]:
    """Return golden cases for an image, which nothing here can run: every answer must be given.

    Raises:
        InvalidInputError: A case does not fit the signature, or lacks an answer.
    """
    cases = golden.cases_of(arrays, tensors.inputs, tensors.outputs)
    for index, case in enumerate(cases):
        if missing := {spec.name for spec in tensors.outputs} - set(case.outputs):
            raise InvalidInputError(
                f"Golden case {index} does not say the answer {min(missing)!r}.",
                code="golden_cases",
                hint="Name arrays <case>.input.<name> and <case>.output.<name>.",
            )
    return cases
