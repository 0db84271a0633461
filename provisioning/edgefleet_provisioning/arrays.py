"""Arrays that the publisher gives: read from .npz without pickles, checked against the model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import Datatype, TensorSpec

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

DTYPES: dict[Datatype, str] = {
    "BOOL": "?", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "|i1",
    "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""numpy's name of each datatype, little-endian; BYTES has none."""

DATATYPES: dict[np.dtype[Any], Datatype] = {np.dtype(name): d for d, name in DTYPES.items()}

WRITE = "Write it with numpy.savez(path, <input name>=array)."


def read_npz(path: Path, what: str) -> Arrays:
    """Return the arrays of an .npz file.

    Raises:
        InvalidInputError: Missing, not such a file, empty, or it holds Python objects.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InvalidInputError(
                f"The {what} {path} is one array without a name.", code="bad_npz", hint=WRITE
            )
        with file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"The {what} {path} does not exist.", code="missing_file", hint="Check the path."
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        # numpy takes whatever it does not know for a pickle, and would advise to load it
        why = "it is not an .npz file" if "pickle" in str(error) else str(error)[:200].rstrip(".")
        raise InvalidInputError(
            f"The {what} {path} cannot be read: {why}.",
            code="bad_npz",
            hint=f"{WRITE} Arrays of Python objects are not accepted.",
        ) from error
    if not found:
        raise InvalidInputError(f"The {what} {path} holds no array.", code="bad_npz", hint=WRITE)
    return found


def check_array(array: Array, spec: TensorSpec, where: str) -> Array:
    """Return an array as the model takes it: little-endian, contiguous, of its type and shape.

    Raises:
        InvalidInputError: Another type or shape.
    """
    if spec.datatype not in DTYPES:
        raise InvalidInputError(
            f"{where}: tensor {spec.name!r} holds text, which golden vectors cannot.",
            code="golden_datatype",
            hint="Publish without --golden.",
        )
    want = np.dtype(DTYPES[spec.datatype])
    if array.dtype.newbyteorder("=") != want.newbyteorder("="):
        raise InvalidInputError(
            f"{where}: {spec.name!r} is {array.dtype}, the model takes {want.name}.",
            code="array_type",
            hint=f"Save it with .astype(numpy.{want.name}).",
        )
    fits = len(array.shape) == len(spec.shape) and all(
        size in {-1, got} for size, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"{where}: {spec.name!r} has the shape {list(array.shape)}, the model takes "
            f"{spec.shape} (-1: any).",
            code="array_shape",
            hint="The first axis of a named array counts cases; each case is one whole call.",
        )
    return np.ascontiguousarray(array, dtype=want)


def finite(array: Array) -> bool:
    """Tell whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
