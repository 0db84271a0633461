"""Golden vectors: what the publisher's machine answered, compared with what this one answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker import tensors
from edgefleet_shared import safetensors_file
from edgefleet_shared.errors import IncompatibleError, InvalidInputError
from edgefleet_shared.package import Golden


class Case(NamedTuple):
    """One call: its inputs and the outputs that must come."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def read(data: bytes, golden: Golden, spec: ModelSpec) -> list[Case]:
    """Return the cases of a golden file.

    Raises:
        InvalidInputError: Malformed, or not as `golden` says (code `load_failed`).
    """
    try:
        found = safetensors_file.decode(data)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"The golden file cannot be read: {error}", code="load_failed"
        ) from error
    cases = [Case({}, {}) for _ in range(golden.cases)]
    for name, tensor in found.items():
        number, _, rest = name.partition(".")
        kind, _, label = rest.partition(".")
        if not number.isdecimal() or int(number) >= len(cases) or kind not in {"input", "output"}:
            raise InvalidInputError(
                f"The golden file holds a foreign {name!r}.", code="load_failed"
            )
        array = np.frombuffer(tensor.data, tensors.DTYPES[tensor.datatype]).reshape(tensor.shape)
        case = cases[int(number)]
        (case.inputs if kind == "input" else case.outputs)[label] = array
    inputs = {tensor.name for tensor in spec.inputs}
    if any(case.inputs.keys() != inputs or not case.outputs for case in cases):
        raise InvalidInputError(
            "A golden case lacks an input or has no output.", code="load_failed"
        )
    return cases


def compare(
    index: int, found: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], golden: Golden
) -> None:
    """Compare one case's outputs by `package.Golden`'s rule; NaN agrees with NaN.

    Raises:
        IncompatibleError: An output differs (code `golden_mismatch`); the message says how far.
    """
    for name, expected in want.items():
        got = found.get(name)
        if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
            raise IncompatibleError(
                f"Golden case {index}: output {name!r} has another shape or datatype.",
                code="golden_mismatch",
            )
        if expected.dtype.kind == "f":
            close = np.isclose(got, expected, golden.rtol, golden.atol, equal_nan=True)
        else:
            close = got == expected
        if not close.all():
            worst = np.abs(got.astype(np.float64) - expected.astype(np.float64))[~close].max()
            raise IncompatibleError(
                f"Golden case {index}: {int((~close).sum())} of {close.size} elements of output "
                f"{name!r} differ, by up to {worst:.6g} (rtol {golden.rtol:g}, atol "
                f"{golden.atol:g}).",
                code="golden_mismatch",
            )
