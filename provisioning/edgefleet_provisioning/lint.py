"""Lint: what a model must not hold, found before anything is signed. Reads files, runs nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import ModelProto

from edgefleet_provisioning import lint_operators, lint_tensors, lint_tflite, onnx_walk
from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.signature import signature
from edgefleet_shared.package import RuntimeName, TensorSpec

MEGABYTE = 2**20
DEFAULT_TENSOR_MB = 2048
MAX_FINDINGS = 20


class LintReport(NamedTuple):
    """A model that was looked at.

    Attributes:
        runtime: What devices run it with.
        data: The file's exact bytes.
        external: Files beside the model that hold its tensors, relative to it.
        inputs: What it takes.
        outputs: What it gives.
        findings: What forbids publishing it; empty for a good model.
        nodes: How many nodes it has, functions and sub-graphs included.
        tensors: How many constant tensors; of TFLite, how many in all.
        opsets: Of ONNX, domain to version.
        producer: What wrote the file, as it says itself.
    """

    runtime: RuntimeName
    data: bytes
    external: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    findings: list[LintError]
    nodes: int
    tensors: int
    opsets: dict[str, int]
    producer: str


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; never waits for a pipe.

    Raises:
        LintError: It is missing, no file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LintError(f"{path} is not a file.", code="not_a_model")
            return file.read()
    except OSError as error:
        raise LintError(
            f"{path} cannot be read: {error.strerror}.",
            code="missing_file",
            hint="Check the path.",
        ) from error


def lint(path: Path, max_tensor_mb: int = DEFAULT_TENSOR_MB) -> LintReport:
    """Look at a model and collect everything that forbids publishing it.

    Args:
        path: The .onnx or .tflite file; external data of ONNX is looked for in its folder.
        max_tensor_mb: What one tensor may take, in MiB.

    Raises:
        LintError: It is no model at all.
    """
    path = path.resolve()
    data = read_regular(path)
    if lint_tflite.is_tflite(path.name, data):
        looked = lint_tflite.look(data, max_tensor_mb * MEGABYTE, MAX_FINDINGS)
        return LintReport("litert", data, [], *looked, opsets={}, producer="")
    return _lint_onnx(path, data, max_tensor_mb)


def _lint_onnx(path: Path, data: bytes, max_tensor_mb: int) -> LintReport:
    model = onnx_walk.parse(data, path.name)
    found = onnx_walk.walk(model)
    findings: list[LintError] = []
    external = _check_tensors(path.parent, found, max_tensor_mb * MEGABYTE, findings)
    _check_nodes(model, found, max_tensor_mb * MEGABYTE, findings)
    inputs, outputs = _signature(model, findings)
    if not findings:
        _check_whole(path, findings)
    opsets = {
        domain or "ai.onnx": version for domain, version in onnx_walk.opsets_of(model).items()
    }
    producer = f"{model.producer_name} {model.producer_version}".strip()[:200]
    return LintReport(
        "onnxruntime", data, external, inputs, outputs, findings, len(found.nodes),
        len(found.tensors), opsets, producer,
    )  # fmt: skip


def demand_clean(report: LintReport, name: str) -> None:
    """Refuse a model with findings.

    Raises:
        LintError: The first finding, with the number of others.
    """
    if report.findings:
        first = report.findings[0]
        more = len(report.findings) - 1
        others = f" ({more} more: `edgefleet model lint {name}` lists all.)" if more else ""
        raise LintError(f"{first.message}{others}", code=first.code, hint=first.hint)


def _check_tensors(
    folder: Path, found: onnx_walk.Walk, limit: int, findings: list[LintError]
) -> list[str]:
    seen: list[lint_tensors.External] = []
    for tensor in found.tensors:
        try:
            external = lint_tensors.check(tensor, limit)
            if external:
                lint_tensors.inspect_file(folder, tensor.where, external)
                seen.append(external)
        except LintError as error:
            _add(findings, error)
    return lint_tensors.locations(iter(seen))


def _check_nodes(
    model: ModelProto, found: onnx_walk.Walk, limit: int, findings: list[LintError]
) -> None:
    functions = frozenset(onnx_walk.function_key(function) for function in model.functions)
    for check in (lint_operators.check_opsets, lint_operators.check_functions):
        try:
            check(model)
        except LintError as error:
            _add(findings, error)
    for node in found.nodes:
        try:
            lint_operators.check_node(node, functions, limit)
        except LintError as error:
            _add(findings, error)


def _signature(
    model: ModelProto, findings: list[LintError]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    try:
        return signature(model)
    except LintError as error:
        _add(findings, error)
        return [], []


def _check_whole(path: Path, findings: list[LintError]) -> None:
    """Let ONNX's own checker look, last: it opens external data, which by now is harmless."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:300]
        _add(
            findings,
            LintError(
                f"ONNX's checker refuses the model: {first}",
                code="invalid_model",
                hint="The file is broken; export the model again.",
            ),
        )


def _add(findings: list[LintError], error: LintError) -> None:
    if len(findings) < MAX_FINDINGS:
        findings.append(error)
