"""The safetensors format, read and written: 8 bytes of header length, JSON header, raw tensors.

Golden vectors travel in it. Source: huggingface/safetensors, README section "Format". The device
reads it here, without numpy, so that no process with keys needs an array library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.manifest import Datatype

MAX_HEADER_BYTES = 1 << 20

DTYPES: dict[str, tuple[Datatype, int]] = {
    "BOOL": ("BOOL", 1), "U8": ("UINT8", 1), "U16": ("UINT16", 2), "U32": ("UINT32", 4),
    "U64": ("UINT64", 8), "I8": ("INT8", 1), "I16": ("INT16", 2), "I32": ("INT32", 4),
    "I64": ("INT64", 8), "F16": ("FP16", 2), "F32": ("FP32", 4), "F64": ("FP64", 8),
}  # fmt: skip
"""safetensors dtype to (Open Inference Protocol datatype, bytes an element)."""

_NAMES = {datatype: dtype for dtype, (datatype, _) in DTYPES.items()}


class RawTensor(NamedTuple):
    """A tensor as little-endian row-major bytes, with its OIP datatype and its shape."""

    datatype: Datatype
    shape: tuple[int, ...]
    data: memoryview | bytes


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def encode(tensors: Mapping[str, RawTensor]) -> bytes:
    """Return the file's bytes; tensors stand in the mapping's order, the header padded to 8.

    Raises:
        InvalidInputError: A datatype that the format does not have (BYTES), or data that does not
            fill the shape.
    """
    header: dict[str, _Entry] = {}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        if tensor.datatype not in _NAMES:
            raise InvalidInputError(
                f"Tensor {name!r} is {tensor.datatype}, which a safetensors file cannot hold.",
                code="golden_datatype",
            )
        part = bytes(tensor.data)
        dtype = _NAMES[tensor.datatype]
        if len(part) != _nbytes(tensor.shape, DTYPES[dtype][1], len(part)):
            raise InvalidInputError(f"Tensor {name!r} does not fit its bytes.", code="malformed")
        end = offset + len(part)
        header[name] = _Entry(dtype, list(tensor.shape), (offset, end))
        parts.append(part)
        offset = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(data: bytes | memoryview) -> dict[str, RawTensor]:
    """Return the tensors as views into `data`.

    Raises:
        InvalidInputError: The header, an offset, a dtype or a size does not hold, or the tensors do
            not fill the file without a hole or an overlap.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > MAX_HEADER_BYTES or 8 + length > len(view):
        raise InvalidInputError("The file is not safetensors.", code="malformed")
    header = strict_json.decode(
        bytes(view[8 : 8 + length]).rstrip(b" "),
        dict[str, dict[str, object]],
        max_bytes=MAX_HEADER_BYTES,
        what="safetensors header",
    )
    header.pop("__metadata__", None)
    body = view[8 + length :]
    read = {name: _tensor(name, fields, body) for name, fields in header.items()}
    end = 0
    for begin, after in sorted(span for _, span in read.values()):
        if begin != end:
            raise InvalidInputError("The tensors overlap or leave a hole.", code="malformed")
        end = after
    if end != len(body):
        raise InvalidInputError("The file holds bytes of no tensor.", code="malformed")
    return {name: tensor for name, (tensor, _) in read.items()}


def _nbytes(shape: Sequence[int], width: int, most: int) -> int:
    """Return a tensor's size in bytes, or -1 if it is negative or beyond `most`."""
    if min(shape, default=0) < 0:
        return -1
    if 0 in shape:
        return 0
    size = width
    for dimension in shape:
        size *= dimension
        if size > most:  # now, before a header of long shapes multiplies for minutes
            return -1
    return size


def _tensor(
    name: str, fields: dict[str, object], body: memoryview
) -> tuple[RawTensor, tuple[int, int]]:
    try:
        entry = msgspec.convert(fields, _Entry)
        datatype, width = DTYPES[entry.dtype]
    except (msgspec.ValidationError, KeyError) as error:
        raise InvalidInputError(f"Tensor {name!r}: {error}.", code="malformed") from error
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= len(body) or end - begin != _nbytes(entry.shape, width, len(body)):
        raise InvalidInputError(f"Tensor {name!r} does not fit its bytes.", code="malformed")
    return RawTensor(datatype, tuple(entry.shape), body[begin:end]), (begin, end)
