"""Lint of what tensors claim: element type, dimensions, bytes, and data kept in other files.

`inspect_file` looks at the disk; the rest is pure.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onnx import TensorProto

from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.onnx_walk import FoundTensor
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.onnx_rules import MEMORY_MARK
from edgefleet_shared.package import check_path

MAX_ELEMENTS = 2**63 - 1

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16,
    TensorProto.INT16: 16, TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16, TensorProto.DOUBLE: 64, TensorProto.UINT32: 32,
    TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8, TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4,
    TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip
"""Bits an element takes in `raw_data` and in external files; strings have no fixed size."""


class External(NamedTuple):
    """A tensor's data in another file: path relative to the model, first byte, bytes."""

    location: str
    offset: int
    size: int


def check(found: FoundTensor, max_bytes: int) -> External | None:
    """Check one tensor; return where its data lies if that is another file.

    Args:
        found: The tensor.
        max_bytes: What one tensor may take.

    Raises:
        LintError: It names the tensor and says what to do.
    """
    where, tensor = found.where, found.tensor
    elements = _elements(where, tensor)
    if tensor.data_type == TensorProto.STRING:
        size = sum(len(text) for text in tensor.string_data)
        if tensor.data_location == TensorProto.EXTERNAL or len(tensor.string_data) != elements:
            raise _data_error(where, f"it has {len(tensor.string_data)} of {elements} strings")
    else:
        size = math.ceil(elements * _bits(where, tensor) / 8)
    if size > max_bytes:
        raise LintError(
            f"{where} takes {size} bytes and may take {max_bytes}.",
            code="tensor_too_large",
            hint="Quantise or split it, or raise --max-tensor-mb if the devices can hold it.",
        )
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        return _external(found, size)
    if tensor.raw_data and len(tensor.raw_data) != size:
        raise _data_error(where, f"its shape needs {size} bytes, it holds {len(tensor.raw_data)}")
    return None


def inspect_file(folder: Path, where: str, external: External) -> None:
    """Check the file that holds a tensor's data: regular, unlinked elsewhere, long enough.

    Raises:
        LintError: It is a link, has another name too, is missing or too short.
    """
    path = folder
    for part in external.location.split("/"):
        path /= part
        try:
            status = os.lstat(path)
        except OSError as error:
            raise LintError(
                f"{where} keeps its data in {external.location!r}, which cannot be read: "
                f"{error.strerror}.",
                code="external_data_missing",
                hint="Put the file beside the model, where the model expects it.",
            ) from error
        if stat.S_ISLNK(status.st_mode):
            raise _link_error(where, external.location, "a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _link_error(where, external.location, "no regular file")
    if status.st_nlink > 1:
        raise _link_error(where, external.location, f"a file with {status.st_nlink} hard links")
    if external.offset + external.size > status.st_size:
        raise LintError(
            f"{where} needs bytes {external.offset} to {external.offset + external.size} of "
            f"{external.location!r}, which has {status.st_size}.",
            code="external_data_range",
            hint="Export the model again; the two files do not belong together.",
        )


def _elements(where: str, tensor: TensorProto) -> int:
    elements = 1
    for dimension in tensor.dims:
        if dimension < 0:
            raise _shape_error(where, f"has the dimension {dimension}")
        elements *= dimension
        if elements > MAX_ELEMENTS:
            raise _shape_error(where, f"has more elements ({list(tensor.dims)}) than 64 bits count")
    return elements


def _bits(where: str, tensor: TensorProto) -> int:
    try:
        return BITS[tensor.data_type]
    except KeyError:
        raise LintError(
            f"{where} has the element type {tensor.data_type}, which is not known here.",
            code="tensor_type",
            hint="Convert it to a type of ONNX 1.21, for example FLOAT or INT8.",
        ) from None


def _external(found: FoundTensor, size: int) -> External:
    where = found.where
    # Duplicate keys: the last one wins in some readers and the first one in others.
    pairs = [(entry.key, entry.value) for entry in found.tensor.external_data]
    fields = dict(pairs)
    location = fields.get("location", "")
    if any(MEMORY_MARK in value for _, value in pairs):
        raise LintError(
            f"{where} points to an address in memory ({location[:80]!r}).",
            code="memory_address",
            hint="Such a model only works inside the program that made it; save it with its data.",
        )
    if found.sparse:
        raise LintError(
            f"{where} is sparse and keeps its data in another file, which no runtime reads safely.",
            code="sparse_external",
            hint="Save the sparse tensor inside the model.",
        )
    if len(fields) != len(pairs) or not location:
        raise _data_error(where, "its external data has no location, or a key twice")
    _check_location(where, location)
    offset, length = (_number(where, fields.get(key, default)) for key, default in
                      (("offset", "0"), ("length", str(size))))  # fmt: skip
    if length != size:
        raise _data_error(where, f"its shape needs {size} bytes, it claims {length}")
    return External(location, offset, size)


def _check_location(where: str, location: str) -> None:
    try:
        check_path(location)
    except InvalidInputError as error:
        raise LintError(
            f"{where} keeps its data outside the package, in {location[:80]!r}.",
            code="external_data_path",
            hint="Save the model with its data in one file, or in a file beside it with a plain "
            "relative name (A-Z a-z 0-9 . _ - /).",
        ) from error


def _number(where: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise _data_error(where, f"its external data has {text[:40]!r} where a number belongs")
    return int(text)


def _shape_error(where: str, what: str) -> LintError:
    return LintError(
        f"{where} {what}.", code="tensor_dims", hint="The file is broken; export the model again."
    )


def _data_error(where: str, what: str) -> LintError:
    return LintError(
        f"{where} does not fit its data: {what}.",
        code="tensor_data",
        hint="The file is broken; export the model again.",
    )


def _link_error(where: str, location: str, kind: str) -> LintError:
    return LintError(
        f"{where} keeps its data in {location!r}, which is {kind}.",
        code="external_data_link",
        hint="Copy the data into a file of its own: `cp --dereference`.",
    )


def locations(found: Iterator[External]) -> list[str]:
    """Return the files that hold data, each once, sorted."""
    return sorted({external.location for external in found})
