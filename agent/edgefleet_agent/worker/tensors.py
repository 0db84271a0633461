"""One tensor between its Open Inference Protocol form, JSON or binary, and a numpy array."""

from __future__ import annotations

import base64
import binascii
from array import array as Array  # noqa: N812 - `array` is numpy's everywhere here
from functools import cache
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from edgefleet_shared.errors import InvalidInputError

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip

_CODES: Final = {"FP32": "f", "FP64": "d"}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def datatype(array: np.ndarray) -> str:
    """Return the OIP datatype of an array.

    Raises:
        ValueError: There is none, for example for complex numbers.
    """
    found = _NAMES.get(array.dtype)
    if found is None:
        if array.dtype.kind in "US":
            return "BYTES"
        raise ValueError(f"no Open Inference Protocol datatype fits {array.dtype}")
    return found


def from_json(name: str, kind: str, shape: list[int], raw: msgspec.Raw) -> np.ndarray:
    """Return the array of JSON `data`, flat or nested as `shape` says.

    Raises:
        InvalidInputError: Wrong count, nesting, type, or a number that does not fit the datatype.
    """
    if kind == "FP16":
        raise InvalidInputError(f"Input {name!r} is FP16, which must be sent as binary data.")
    try:
        values = _decoder(kind, 1).decode(raw)
    except msgspec.DecodeError as error:
        values = _nested(name, kind, shape, raw, error)
    if len(values) != prod(shape):
        raise InvalidInputError(
            f"Input {name!r} has {len(values)} elements; its shape {shape} needs {prod(shape)}."
        )
    dtype = DTYPES[kind]
    if kind == "BYTES":
        array = np.empty(len(values), dtype)
        array[:] = values
    elif dtype.kind == "f":
        # In half the time of numpy's own way, and without its warning where a number is too large.
        array = np.frombuffer(Array(_CODES[kind], values), dtype)
        if not np.isfinite(array).all():  # JSON cannot say infinity: it was too large
            raise InvalidInputError(f"A number in input {name!r} does not fit {kind}.")
    else:
        try:
            wide = np.array(values, np.uint64 if dtype.kind == "u" else np.int64)
            array = wide.astype(dtype)
            fits = bool((array == wide).all())
        except OverflowError:
            fits = False
        if not fits:
            raise InvalidInputError(f"A number in input {name!r} does not fit {kind}.")
    return array.reshape(shape)


def _nested(
    name: str, kind: str, shape: list[int], raw: msgspec.Raw, flat: msgspec.DecodeError
) -> list[Any]:
    if len(shape) < 2 or not bytes(memoryview(raw)[1:64]).lstrip().startswith(b"["):
        raise InvalidInputError(f"The data of input {name!r} is not {kind}: {flat}.") from flat
    try:
        rows = _decoder(kind, len(shape)).decode(raw)
    except msgspec.DecodeError as error:
        raise InvalidInputError(
            f"The data of input {name!r} is not {kind} nested as {shape}: {error}."
        ) from error
    for length in shape[1:]:
        if any(len(row) != length for row in rows):
            raise InvalidInputError(f"The data of input {name!r} is not nested as {shape}.")
        rows = [item for row in rows for item in row]
    return rows  # type: ignore[no-any-return]  # lists of a depth that no static type can say


@cache
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    element: Any = {"BOOL": bool, "BYTES": str}.get(kind, int)
    if DTYPES[kind].kind == "f":
        element = float
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def from_binary(name: str, kind: str, shape: list[int], data: memoryview) -> np.ndarray:
    """Return the array of little-endian row-major bytes, without a copy where it may.

    Raises:
        InvalidInputError: The size does not fit the shape, or the BYTES framing is broken.
    """
    if kind == "BYTES":
        return _split_bytes(name, prod(shape), data).reshape(shape)
    dtype = DTYPES[kind]
    if len(data) != prod(shape) * dtype.itemsize:
        raise InvalidInputError(
            f"Input {name!r} has {len(data)} bytes; {kind} of shape {shape} needs "
            f"{prod(shape) * dtype.itemsize}."
        )
    if kind == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise InvalidInputError(f"Input {name!r} is BOOL and holds a byte other than 0 and 1.")
    array: np.ndarray = np.frombuffer(data, dtype)
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def blobs_from_json(name: str, shape: list[int], raw: msgspec.Raw) -> np.ndarray:
    """Return BYTES elements that are files, which JSON holds as base64 (RFC 4648, padded).

    Raises:
        InvalidInputError: Wrong count, or not base64.
    """
    array = from_json(name, "BYTES", shape, raw)
    try:
        for index in np.ndindex(array.shape):
            text: Any = array[index]
            array[index] = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(
            f"Input {name!r} is not base64: {error}.",
            hint="JSON holds no bytes; or send the file itself as binary data.",
        ) from error
    return array


def blobs_from_binary(name: str, shape: list[int], data: memoryview) -> np.ndarray:
    """Return BYTES elements that are files, each behind its length.

    Raises:
        InvalidInputError: The framing is broken.
    """
    return _split_bytes(name, prod(shape), data, text=False).reshape(shape)


def _split_bytes(name: str, count: int, data: memoryview, *, text: bool = True) -> np.ndarray:
    if count * 4 > len(data):
        raise InvalidInputError(f"Input {name!r} has too few bytes for {count} BYTES elements.")
    found = np.empty(count, object)
    at = 0
    for index in range(count):
        begin = at + 4
        at = begin + int.from_bytes(data[at:begin], "little")
        if begin > len(data) or at > len(data):
            raise InvalidInputError(f"Element {index} of input {name!r} goes past its bytes.")
        if not text:
            found[index] = bytes(data[begin:at])
            continue
        try:
            found[index] = str(data[begin:at], "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"Element {index} of input {name!r} is not UTF-8, which models here need."
            ) from error
    if at != len(data):
        raise InvalidInputError(f"Input {name!r} has {len(data) - at} bytes too many.")
    return found


def to_binary(array: np.ndarray) -> bytes:
    """Return the array as little-endian row-major bytes, BYTES elements with their lengths."""
    if datatype(array) != "BYTES":
        return array.tobytes()
    parts = []
    for item in array.ravel().tolist():
        element = item if isinstance(item, bytes) else str(item).encode()
        parts += [len(element).to_bytes(4, "little"), element]
    return b"".join(parts)


def to_json(array: np.ndarray) -> list[Any]:
    """Return the array's elements, flat, as JSON can say them; NaN and infinity become null."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind in "OS":
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    return values
