"""Golden vectors: inputs with the answers they must get, by which a device proves a version.

The .npz holds either arrays named like the model's inputs, whose first axis counts cases, so that
`pixels` of shape (8, 1, 64) is eight calls with one row each; or arrays named
`<case>.input.<name>`, case = 0, 1, ..., with `<case>.output.<name>` where the answer is known.
Answers that are not given are computed here, on the CPU, by the runtime that devices have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgefleet_provisioning.arrays import DATATYPES, Arrays, check_array, finite
from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.runners import Run
from edgefleet_shared import safetensors_file
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.package import TensorSpec
from edgefleet_shared.safetensors_file import RawTensor

MAX_CASES = 256
CASE_NAME = re.compile(r"(0|[1-9]\d{0,3})\.(input|output)\.(.+)", re.DOTALL)
RTOL, ATOL = 1e-3, 1e-4


class Case(NamedTuple):
    """One call: inputs by name, and the outputs that are given."""

    inputs: Arrays
    outputs: Arrays


def cases_of(
    arrays: Arrays, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> list[Case]:
    """Return the cases in an .npz file's arrays, checked against the model's signature.

    Raises:
        InvalidInputError: Names, types, shapes or numbers of cases that do not fit.
    """
    names = {spec.name for spec in inputs}
    numbered = not names.intersection(arrays) and any(CASE_NAME.fullmatch(n) for n in arrays)
    cases = _numbered(arrays) if numbered else _stacked(arrays, names)
    if not 1 <= len(cases) <= MAX_CASES:
        raise InvalidInputError(
            f"The golden file holds {len(cases)} cases; 1 to {MAX_CASES} are allowed.",
            code="golden_cases",
            hint="A dozen that differ are enough.",
        )
    return [_check_case(f"Golden case {i}", c, inputs, outputs) for i, c in enumerate(cases)]


def compute(run: Run, cases: Sequence[Case], outputs: Sequence[TensorSpec]) -> list[Case]:
    """Return the cases with every output, computed where it was not given.

    Args:
        run: The model, loaded.
        cases: Calls, with the answers that are known.
        outputs: What the model gives.

    Raises:
        LintError: The model does not load or run here, or answers with NaN or infinity.
        InvalidInputError: It answers otherwise than the golden file says.
    """
    done: list[Case] = []
    for index, case in enumerate(cases):
        where = f"Golden case {index}"
        try:
            answer = run(case.inputs)
            got = {
                spec.name: check_array(np.asarray(answer[spec.name]), spec, where)
                for spec in outputs
            }
        except EdgeFleetError:
            raise
        except Exception as error:  # runtimes' errors have no common root but this
            raise LintError(
                f"{where} cannot be computed: {str(error)[:300]}.",
                code="golden_failed",
                hint="Does this input suit the model?",
            ) from error
        for name, value in got.items():
            if not finite(value):
                raise LintError(
                    f"{where} gives NaN or infinity in output {name!r}.",
                    code="golden_not_finite",
                    hint="Is the input in the range that the model was trained on?",
                )
        _compare(where, case.outputs, got)
        done.append(Case(case.inputs, {**got, **case.outputs}))
    return done


def encode(cases: Sequence[Case]) -> bytes:
    """Return the safetensors file of complete cases."""
    tensors: dict[str, RawTensor] = {}
    for index, case in enumerate(cases):
        for kind, arrays in (("input", case.inputs), ("output", case.outputs)):
            for name, array in arrays.items():
                datatype = DATATYPES[array.dtype]
                tensors[f"{index}.{kind}.{name}"] = RawTensor(
                    datatype, array.shape, array.tobytes()
                )
    return safetensors_file.encode(tensors)


def _stacked(arrays: Arrays, names: set[str]) -> list[Case]:
    if missing := names - set(arrays):
        raise _names_error(f"lacks the input {min(missing)!r}", names)
    if foreign := set(arrays) - names:
        raise _names_error(f"holds {min(foreign)!r}, which is no input", names)
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1:
        raise InvalidInputError(
            f"The golden file's arrays hold different numbers of cases: {sorted(counts)}.",
            code="golden_cases",
            hint="The first axis of every array counts cases.",
        )
    return [Case({n: a[i] for n, a in arrays.items()}, {}) for i in range(counts.pop())]


def _numbered(arrays: Arrays) -> list[Case]:
    found: dict[int, Case] = {}
    for key, array in arrays.items():
        match = CASE_NAME.fullmatch(key)
        if match is None:
            raise InvalidInputError(
                f"The golden file's array {key!r} belongs to no case.",
                code="golden_names",
                hint="Name them <case>.input.<name> and <case>.output.<name>.",
            )
        case = found.setdefault(int(match[1]), Case({}, {}))
        (case.inputs if match[2] == "input" else case.outputs)[match[3]] = array
    if sorted(found) != list(range(len(found))):
        raise InvalidInputError(
            f"The golden file's cases are numbered {sorted(found)[:10]}.",
            code="golden_cases",
            hint="Number them 0, 1, 2, ... without a hole.",
        )
    return [found[index] for index in sorted(found)]


def _check_case(
    where: str, case: Case, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Case:
    names = {spec.name for spec in inputs}
    if set(case.inputs) != names:
        odd = min(names.symmetric_difference(case.inputs))
        raise _names_error(f"has {odd!r} missing or too many in {where.lower()}", names)
    if foreign := set(case.outputs) - {spec.name for spec in outputs}:
        raise _names_error(f"holds {min(foreign)!r}, which is no output", names)
    return Case(
        {spec.name: check_array(case.inputs[spec.name], spec, where) for spec in inputs},
        {
            spec.name: check_array(case.outputs[spec.name], spec, where)
            for spec in outputs
            if spec.name in case.outputs
        },
    )


def _compare(where: str, wanted: Arrays, got: Arrays) -> None:
    for name, want in wanted.items():
        exact = want.dtype.kind != "f"
        if want.shape != got[name].shape or not (
            np.array_equal(want, got[name])
            if exact
            else np.allclose(got[name], want, rtol=RTOL, atol=ATOL)
        ):
            raise InvalidInputError(
                f"{where} gives another {name!r} than the golden file says.",
                code="golden_differs",
                hint=f"Allowed is {ATOL} + {RTOL} * |wanted|. Is it the right model?",
            )


def _names_error(what: str, names: set[str]) -> InvalidInputError:
    return InvalidInputError(
        f"The golden file {what}.",
        code="golden_names",
        hint=f"The model's inputs are {', '.join(sorted(names))}.",
    )
