"""The client's side of the Open Inference Protocol v2 with binary tensors: bytes to arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Problem(msgspec.Struct):
    error: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


def request(inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> tuple[bytes, int]:
    """Return a request's body, and the length of the JSON at its begin."""
    described, blobs = [], []
    for name, array in inputs.items():
        kind = _NAMES.get(array.dtype, "BYTES")
        blob = _join(array) if kind == "BYTES" else array.tobytes()
        blobs.append(blob)
        described.append(
            {
                "name": name,
                "datatype": kind,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(blob)},
            }
        )
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = msgspec.json.encode({"inputs": described, "outputs": wanted})
    return b"".join([head, *blobs]), len(head)


def answer(body: bytes, json_length: int) -> dict[str, np.ndarray]:
    """Return the arrays of an answer, whether they came as JSON or as binary data.

    Raises:
        RuntimeError: The container does not keep to the protocol.
    """
    view = memoryview(body)
    head = len(body) if json_length < 0 else json_length
    found: dict[str, np.ndarray] = {}
    try:
        for output in _decode(view[:head]).outputs:
            size = output.parameters.get("binary_data_size")
            if size is None:
                found[output.name] = _from_json(output)
                continue
            end = head + int(size)
            found[output.name] = _from_binary(output, view[head:end])
            head = end
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise RuntimeError(f"The container's answer cannot be read: {error}.") from error
    return found


def problem(body: bytes) -> str:
    """Return what an error's body says, short."""
    try:
        text = msgspec.json.decode(body, type=_Problem).error
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace")
    return text[:400] or "it does not say why"


def _from_json(output: _Output) -> np.ndarray:
    values = msgspec.json.decode(output.data)
    dtype = np.dtype(object) if output.datatype == "BYTES" else _DTYPES[output.datatype]
    return np.array(values, dtype).reshape(output.shape)


def _from_binary(output: _Output, data: memoryview) -> np.ndarray:
    if output.datatype == "BYTES":
        return _split(data, prod(output.shape)).reshape(output.shape)
    dtype = _DTYPES[output.datatype]
    return np.frombuffer(bytes(data), dtype).reshape(output.shape)


def _join(array: np.ndarray) -> bytes:
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        element = item if isinstance(item, bytes) else str(item).encode()
        parts += [len(element).to_bytes(4, "little"), element]
    return b"".join(parts)


def _split(data: memoryview, count: int) -> np.ndarray:
    found, at = [], 0
    while at < len(data):
        begin = at + 4
        at = begin + int.from_bytes(data[at:begin], "little")
        if at > len(data):
            raise ValueError("an element of BYTES goes past its data")
        found.append(str(data[begin:at], "utf-8"))
    if len(found) != count:
        raise ValueError(f"{len(found)} elements of BYTES are not {count}")
    elements = np.empty(count, object)
    elements[:] = found
    return elements
