"""The wire format of protocol buffers, as far as a model must be looked at before it is loaded.

No schema and no copy: fields come as numbers and views. What no encoder writes is refused, so that
this reader and the runtime's cannot see two different things in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}


class WireError(ValueError):
    """The bytes are not protobuf, or use what no encoder of models writes."""


def fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Yield (field number, wire type, number, bytes) in order; of the last two one is meaningful.

    Raises:
        WireError: Cut short, a group, or a tag that does not fit 32 bits.
    """
    at, end, nothing = 0, len(data), data[:0]
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not number or tag >> 32:
            raise WireError(f"a tag of {tag}")
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, nothing
            continue
        if wire == BYTES:
            size, at = _varint(data, at, end)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:  # groups could hide fields from one reader and not from the other
            raise WireError(f"wire type {wire}")
        if size > end - at:
            raise WireError("a field that is longer than what is left")
        yield number, wire, 0, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError("a number without an end")


def parts(data: memoryview, number: int) -> Iterator[memoryview]:
    """Yield every occurrence of one field of bytes; a field that is singular may come twice."""
    for found, wire, _, value in fields(data):
        if found == number and wire == BYTES:
            yield value


def text(data: memoryview) -> str:
    """Return a string; what is not UTF-8 becomes a character that no list allows."""
    return str(data, "utf-8", "replace")
