"""The wire format of FlatBuffers, read strictly against a schema: every offset, length and vtable.

What a runtime does with a file it trusts, jumping by offsets that the file gives, is done here with
each jump checked, for the whole file, before a runtime sees it. What the schema does not know is
refused: a field that only the runtime's newer reader sees would be a field that nobody has checked.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

MAX_DEPTH: Final = 32
MAX_VISITS: Final = 1_000_000
"""Tables met on the way, counted each time: a few vectors can name one table a million times."""

_SCALARS: Final = {
    code: struct.Struct(f"<{code}") for code in ("?", "b", "B", "h", "H", "i", "I", "q", "Q", "f")
}


class FlatbufferError(ValueError):
    """The bytes are not what the schema says; the message says where it broke."""


class Field(NamedTuple):
    """One field: its name and kind.

    Kinds: a letter of `struct` for a number; `s` a string; `[i]` a vector of numbers; `Name` a
    table, `[Name]` a vector of tables; `u:NAME` a union whose type is the field before, by the
    list NAME; '-' a number that no reader looks at any more.
    """

    name: str
    kind: str


class Schema(NamedTuple):
    """Tables by name, and unions: names of tables by their number, '' for none."""

    tables: Mapping[str, tuple[Field, ...]]
    unions: Mapping[str, tuple[str, ...]]


class Table(NamedTuple):
    """A table that was checked, with all below it.

    `values` has what the file says, by field; what it leaves out is not there. Numbers, `bytes` of
    strings, views of vectors of numbers, tables, and lists of tables.
    """

    name: str
    values: dict[str, Any]

    def get(self, field: str, default: Any = None) -> Any:
        """Return a field's value, or the default."""
        return self.values.get(field, default)


def read(data: memoryview, schema: Schema, root: str, identifier: bytes) -> Table:
    """Return the root table of a file, with everything below it checked.

    Args:
        data: The file, of bytes.
        schema: Tables and unions that may occur.
        root: The root table's name.
        identifier: The four bytes that must stand at offset 4.

    Raises:
        FlatbufferError: An offset, length, vtable or text is not as the format says.
    """
    if len(data) < 12 or data[4:8] != identifier:
        raise FlatbufferError(f"it lacks the identifier {identifier.decode()}")
    return _Reader(data, schema).reference(root, 0, 0)


class _Reader:
    """One pass over one file; tables that several offsets lead to are read once."""

    def __init__(self, data: memoryview, schema: Schema) -> None:
        self._data, self._schema = data, schema
        self._known: dict[tuple[str, int], Table] = {}
        self._visits = 0

    def number(self, code: str, at: int) -> Any:
        scalar = _SCALARS[code]
        if at % scalar.size or not 0 <= at <= len(self._data) - scalar.size:
            raise FlatbufferError(f"a number at {at} lies outside or crooked")
        return scalar.unpack_from(self._data, at)[0]

    def _target(self, at: int) -> int:
        """Follow an offset; it leads forwards."""
        target: int = at + self.number("I", at)
        if target == at or target > len(self._data) - 4:
            raise FlatbufferError(f"an offset at {at} leads outside")
        return target

    def reference(self, name: str, at: int, depth: int) -> Table:
        """Return the table that the offset at `at` leads to."""
        self._visits += 1
        if depth > MAX_DEPTH or self._visits > MAX_VISITS:
            raise FlatbufferError("tables lie in one another without an end")
        place = self._target(at)
        table = self._known.get((name, place))
        if table is None:
            table = self._known[name, place] = self._table(name, place, depth)
        return table

    def _table(self, name: str, at: int, depth: int) -> Table:
        fields = self._schema.tables[name]
        vtable = at - self.number("i", at)
        size, inline = self.number("H", vtable), self.number("H", vtable + 2)
        count = (size - 4) // 2
        if size < 4 or size % 2 or vtable + size > len(self._data):
            raise FlatbufferError(f"the vtable of a {name} at {at} is broken")
        if inline < 4 or at + inline > len(self._data):
            raise FlatbufferError(f"a {name} at {at} ends outside")
        values: dict[str, Any] = {}
        for slot in range(count):
            offset = self.number("H", vtable + 4 + 2 * slot)
            if not offset or (slot < len(fields) and fields[slot].kind == "-"):
                continue
            if slot >= len(fields):
                raise FlatbufferError(f"a {name} has a field {slot} that is not known here")
            field = fields[slot]
            width = _SCALARS[field.kind].size if field.kind in _SCALARS else 4
            if offset < 4 or offset + width > inline:
                raise FlatbufferError(f"field {field.name} of a {name} lies outside it")
            if field.kind.startswith("u:"):
                chosen = values.get(fields[slot - 1].name, 0)
                values[field.name] = self._union(field.kind[2:], chosen, at + offset, depth)
            else:
                values[field.name] = self._value(field.kind, at + offset, depth)
        return Table(name, values)

    def _value(self, kind: str, at: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self.number(kind, at)
        if kind == "s":
            return self._text(at)
        if not kind.startswith("["):
            return self.reference(kind, at, depth + 1)
        of = kind[1:-1]
        if of in _SCALARS:
            return self._numbers(of, at)
        begin, count = self._vector(at, 4)
        if count > MAX_VISITS:
            raise FlatbufferError(f"a vector of {count} tables")
        return [self.reference(of, begin + 4 * index, depth + 1) for index in range(count)]

    def _union(self, union: str, chosen: int, at: int, depth: int) -> Table:
        names = self._schema.unions[union]
        if not 0 < chosen < len(names):
            raise FlatbufferError(f"a union of type {chosen}, which {union} does not have")
        return self.reference(names[chosen], at, depth + 1)

    def _vector(self, at: int, width: int) -> tuple[int, int]:
        place = self._target(at)
        count = self.number("I", place)
        if count * width > len(self._data) - place - 4:
            raise FlatbufferError(f"a vector at {place} ends outside")
        return place + 4, count

    def _numbers(self, code: str, at: int) -> memoryview:
        width = _SCALARS[code].size
        begin, count = self._vector(at, width)
        if begin % width:
            raise FlatbufferError(f"a vector at {begin} lies crooked")
        part: Any = self._data[begin : begin + count * width]
        return part.cast(code)  # type: ignore[no-any-return] # of numbers of that kind

    def _text(self, at: int) -> str:
        begin, count = self._vector(at, 1)
        end = begin + count
        if end >= len(self._data) or self._data[end]:
            raise FlatbufferError(f"a text at {begin} has no end")
        try:
            return str(self._data[begin:end], "utf-8")
        except UnicodeDecodeError as error:
            raise FlatbufferError(f"a text at {begin} is not UTF-8") from error
