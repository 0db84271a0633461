"""Lint of TFLite models: the device's own rules, with every finding instead of the first. Pure."""

from __future__ import annotations

from typing import NamedTuple

from edgefleet_provisioning.errors import LintError
from edgefleet_shared import tflite_file, tflite_rules
from edgefleet_shared.package import TensorSpec
from edgefleet_shared.tflite_file import IDENTIFIER, ModelError

SUFFIX = ".tflite"


class Looked(NamedTuple):
    """What was found in one file."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    findings: list[LintError]
    nodes: int
    tensors: int


def is_tflite(name: str, data: bytes) -> bool:
    """Tell a TFLite file by its identifier, or by its name where it lost that."""
    return data[4:8] == IDENTIFIER or name.lower().endswith(SUFFIX)


def look(data: bytes, max_bytes: int, limit: int) -> Looked:
    """Return what a file holds and what forbids publishing it.

    Args:
        data: The file.
        max_bytes: What one tensor may take.
        limit: How many findings at most.

    Raises:
        LintError: It is no TFLite model at all.
    """
    try:
        model = tflite_file.read(memoryview(data))
    except ModelError as error:
        raise _lint(error) from error
    custom = frozenset[str]().union(*tflite_rules.CUSTOM_OPERATORS.values())
    findings: list[LintError] = []
    for found in tflite_rules.check(model, max_bytes=max_bytes, custom=custom):
        if len(findings) < limit:
            findings.append(_lint(found))
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    if not findings:
        try:
            inputs, outputs = tflite_file.described(model)
        except ModelError as error:
            findings.append(_lint(error))
    return Looked(
        inputs, outputs, findings,
        nodes=sum(len(graph.operators) for graph in model.graphs),
        tensors=sum(len(graph.tensors) for graph in model.graphs),
    )  # fmt: skip


def _lint(error: ModelError) -> LintError:
    return LintError(error.message, code=error.code, hint=error.hint)
