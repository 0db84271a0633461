"""Values of AMQP 1.0 as bytes (OASIS part 1): what Event Hubs and its clients say, no more.

Lists are written whole, with every trailing null: clients that index the fields of a frame by
number (azure-eventhub does) then need no care.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID


class AmqpError(ValueError):
    """Bytes that are no AMQP."""


class UByte(int):
    """An unsigned byte."""


class UShort(int):
    """An unsigned number of 16 bits."""


class UInt(int):
    """An unsigned number of 32 bits."""


class ULong(int):
    """An unsigned number of 64 bits."""


class Int(int):
    """A signed number of 32 bits; a plain `int` is one of 64."""


class Timestamp(int):
    """Milliseconds since 1970."""


class Symbol(str):
    """A name out of a protocol, in ASCII."""

    __slots__ = ()


class Described(NamedTuple):
    """A value and what it means: a number or a symbol."""

    descriptor: Any
    value: Any


class Symbols(list[str]):
    """An array of symbols."""


_NULL, _TRUE, _FALSE = b"\x40", b"\x41", b"\x42"
_NUMBERS: dict[type, tuple[bytes, str]] = {
    UByte: (b"\x50", ">B"),
    UShort: (b"\x60", ">H"),
    UInt: (b"\x70", ">I"),
    ULong: (b"\x80", ">Q"),
    Int: (b"\x71", ">i"),
    Timestamp: (b"\x83", ">q"),
    int: (b"\x81", ">q"),
    float: (b"\x82", ">d"),
}


def encode(value: Any) -> bytes:
    """Return a value as AMQP writes it.

    Raises:
        AmqpError: AMQP has no such type, or this codec does not know it.
    """
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    number = _NUMBERS.get(type(value))
    if number is not None:
        return number[0] + struct.pack(number[1], value)
    if isinstance(value, Described):
        return b"\x00" + _descriptor(value.descriptor) + encode(value.value)
    return _encode_wide(value)


def described_list(descriptor: int, fields: Sequence[Any]) -> bytes:
    """Return a composite of AMQP, all its fields written."""
    return b"\x00\x53" + bytes((descriptor,)) + encode(list(fields))


def _encode_wide(value: Any) -> bytes:
    if isinstance(value, Symbol):
        return _sized(b"\xa3", b"\xb3", value.encode("ascii"))
    if isinstance(value, str):
        return _sized(b"\xa1", b"\xb1", value.encode())
    if isinstance(value, bytes | bytearray):
        return _sized(b"\xa0", b"\xb0", bytes(value))
    if isinstance(value, Symbols):
        items = b"".join(struct.pack(">I", len(one)) + one.encode("ascii") for one in value)
        body = struct.pack(">I", len(value)) + b"\xb3" + items
        return b"\xf0" + struct.pack(">I", len(body)) + body
    if isinstance(value, Mapping):
        pairs = b"".join(encode(name) + encode(found) for name, found in value.items())
        return b"\xd1" + struct.pack(">II", len(pairs) + 4, 2 * len(value)) + pairs
    if isinstance(value, list | tuple):
        items = b"".join(encode(one) for one in value)
        return b"\xd0" + struct.pack(">II", len(items) + 4, len(value)) + items
    if isinstance(value, UUID):
        return b"\x98" + value.bytes
    raise AmqpError(f"AMQP has no type for {type(value).__name__}.")


def _descriptor(value: Any) -> bytes:
    if isinstance(value, int) and value < 256:
        return b"\x53" + bytes((value,))
    return encode(ULong(value) if isinstance(value, int) else value)


def _sized(small: bytes, large: bytes, body: bytes) -> bytes:
    if len(body) < 256:
        return small + bytes((len(body),)) + body
    return large + struct.pack(">I", len(body)) + body


_FIXED: dict[int, tuple[str, Callable[[Any], Any]]] = {
    0x50: (">B", UByte),
    0x51: (">b", int),
    0x52: (">B", UInt),
    0x53: (">B", ULong),
    0x54: (">b", Int),
    0x55: (">b", int),
    0x56: (">B", bool),
    0x60: (">H", UShort),
    0x61: (">h", int),
    0x70: (">I", UInt),
    0x71: (">i", Int),
    0x72: (">f", float),
    0x80: (">Q", ULong),
    0x81: (">q", int),
    0x82: (">d", float),
    0x83: (">q", Timestamp),
}
_CONSTANT: dict[int, Any] = {0x40: None, 0x41: True, 0x42: False, 0x43: UInt(0), 0x44: ULong(0)}
_DEPTH = 32


class Reader:
    """Reads one value after the other from bytes that somebody else wrote.

    Args:
        data: The bytes.
        at: Where to begin.
    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at
        self._depth = 0

    @property
    def rest(self) -> bytes:
        """What has not been read."""
        return self._data[self.at :]

    def value(self) -> Any:
        """Return the next value.

        Raises:
            AmqpError: There is none, or it is none of AMQP's.
        """
        if self._depth > _DEPTH:
            raise AmqpError("Values nest too deeply.")
        self._depth += 1
        try:
            code = self._take(1)[0]
            if code == 0:
                return Described(self.value(), self.value())
            return self._of(code)
        finally:
            self._depth -= 1

    def _of(self, code: int) -> Any:
        if code in _CONSTANT:
            return _CONSTANT[code]
        if code == 0x45:
            return []
        if code in _FIXED:
            form, kind = _FIXED[code]
            (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
            return kind(number)
        if code == 0x98:
            return UUID(bytes=self._take(16))
        if code & 0xE0 == 0xA0:
            return self._text(code)
        if code in {0xC0, 0xC1, 0xD0, 0xD1}:
            return self._compound(code)
        if code in {0xE0, 0xF0}:
            return self._array(wide=code == 0xF0)
        raise AmqpError(f"Constructor 0x{code:02x} is not known.")

    def _text(self, code: int) -> Any:
        body = self._take(self._length(wide=code & 0x10 != 0))
        kind = code & 0x0F
        try:
            if kind == 1:
                return body.decode()
            if kind == 3:
                return Symbol(body.decode("ascii"))
        except UnicodeDecodeError as error:
            raise AmqpError("Text is not UTF-8.") from error
        if kind == 0:
            return body
        raise AmqpError(f"Constructor 0x{code:02x} is not known.")

    def _compound(self, code: int) -> Any:
        wide = code >= 0xD0
        end = self._length(wide=wide)
        end += self.at
        count = self._length(wide=wide)
        if end > len(self._data) or count > end - self.at:
            raise AmqpError("A list or map is longer than its frame.")
        values = [self.value() for _ in range(count)]
        if self.at != end:
            raise AmqpError("A list or map has another length than it says.")
        if code & 0x0F == 0:
            return values
        if count % 2:
            raise AmqpError("A map has a key without a value.")
        try:
            return dict(zip(values[::2], values[1::2], strict=True))
        except TypeError as error:
            raise AmqpError("A map's key is a list or a map.") from error

    def _array(self, *, wide: bool) -> list[Any]:
        end = self._length(wide=wide)
        end += self.at
        count = self._length(wide=wide)
        if count > len(self._data):
            raise AmqpError("An array is longer than its frame.")
        if not count:
            self.at = end
            return []
        code = self._take(1)[0]
        if code == 0:
            descriptor, code = self.value(), self._take(1)[0]
            return [Described(descriptor, self._of(code)) for _ in range(count)]
        return [self._of(code) for _ in range(count)]

    def _length(self, *, wide: bool) -> int:
        form = ">I" if wide else ">B"
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _take(self, count: int) -> bytes:
        taken = self._data[self.at : self.at + count]
        if len(taken) < count:
            raise AmqpError("A value ends too early.")
        self.at += count
        return taken
