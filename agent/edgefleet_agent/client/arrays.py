"""Numpy arrays as the protocol names and lays them out. Little-endian machines alone."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgefleet_agent.client.errors import InvalidRequestError
from edgefleet_agent.ipc import fast

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def laid_out(name: str, given: Any) -> tuple[str, np.ndarray]:
    """Return an input's datatype and its elements in row-major order; BYTES as bytes.

    `bytes` alone, as of a JPEG, are one element.

    Raises:
        InvalidRequestError: The protocol has no datatype for it.
    """
    array = as_array(given)
    datatype = _NAMES.get(array.dtype)
    if datatype is None:
        if array.dtype.kind in "OSU":
            return "BYTES", _joined(name, array)
        if array.dtype.kind not in "biuf":
            raise InvalidRequestError(
                f"Input {name!r} is {array.dtype}, for which there is no datatype."
            )
        array = array.astype(array.dtype.newbyteorder("<"))
        datatype = _NAMES.get(array.dtype)
        if datatype is None:
            raise InvalidRequestError(f"Input {name!r} is {array.dtype}, which is too wide.")
    return datatype, array if array.flags.c_contiguous else np.ascontiguousarray(array)


def as_array(given: Any) -> np.ndarray:
    """Return what a caller gave as an array; `bytes` as one element, whatever is in them."""
    if isinstance(given, bytes | bytearray):
        array = np.empty(1, object)
        array[0] = bytes(given)
        return array
    return np.asarray(given)


def _joined(name: str, array: np.ndarray) -> np.ndarray:
    parts = []
    for item in array.ravel().tolist():
        if not isinstance(item, str | bytes):
            raise InvalidRequestError(f"Input {name!r} holds a {type(item).__name__}, not a text.")
        data = item.encode() if isinstance(item, str) else item
        parts += [len(data).to_bytes(4, "little"), data]
    return np.frombuffer(b"".join(parts), np.uint8)


def array_of(tensor: fast.Tensor, data: memoryview) -> np.ndarray:
    """Return an output as an array over `data`; BYTES as an array of bytes objects.

    Raises:
        ValueError: The bytes do not fit the shape.
    """
    if tensor.datatype == "BYTES":
        return _split(tensor, data)
    return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(tensor.shape)


def _split(tensor: fast.Tensor, data: memoryview) -> np.ndarray:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + 4
        at = begin + int.from_bytes(data[at:begin], "little")
        if at > len(data):
            raise ValueError("an element goes past its tensor")
        found.append(bytes(data[begin:at]))
    array = np.empty(len(found), object)
    array[:] = found
    return array.reshape(tensor.shape)
