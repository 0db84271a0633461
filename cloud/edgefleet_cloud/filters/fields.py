"""Which fields a filter may name, and what their values are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum

from edgefleet_cloud.filters.errors import misfit
from edgefleet_cloud.filters.tree import Field, Value
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time, parse_time

KEY = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")


class Kind(StrEnum):
    """What a field's values are."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "true or false"
    TIME = "time"


@dataclass(frozen=True)
class Schema:
    """The fields of one resource.

    Attributes:
        fields: Field name to what it holds.
        maps: Fields that hold text by key, written `name.key`.
    """

    fields: Mapping[str, Kind]
    maps: frozenset[str] = field(default_factory=frozenset)

    def find(self, word: str, position: int) -> Field:
        """Return the field that `word` names.

        Raises:
            FilterError: There is none.
        """
        name, dot, key = word.partition(".")
        if dot and name in self.maps:
            if not KEY.fullmatch(key):
                raise misfit(
                    position,
                    f"{key[:80]!r} cannot be a key of {name}",
                    hint="A key is 1 to 63 of a-z, 0-9, '-' and '_'.",
                )
            return Field(name, key)
        if word in self.fields:
            return Field(word)
        known = [*self.fields, *(f"{each}.<key>" for each in sorted(self.maps))]
        close = get_close_matches(word, known, n=1)
        raise misfit(
            position,
            f"there is no field {word[:80]!r}",
            hint=f"Did you mean {close[0]!r}?" if close else f"Fields: {', '.join(known)}.",
        )

    def kind(self, of: Field) -> Kind:
        """Return what a field that `find` gave holds."""
        return Kind.TEXT if of.key is not None else self.fields[of.name]

    def check(self, of: Field, value: Value, position: int) -> Value:
        """Return the value in the form in which the field's values are compared.

        Raises:
            FilterError: The field holds something else.
        """
        kind = self.kind(of)
        if kind is Kind.TIME and isinstance(value, str):
            try:
                return format_time(parse_time(value))
            except InvalidInputError as error:
                raise misfit(
                    position, "this is not a time", hint='Write "2026-01-31T12:00:00Z".'
                ) from error
        fits = {
            Kind.TEXT: isinstance(value, str),
            Kind.NUMBER: isinstance(value, int | float) and not isinstance(value, bool),
            Kind.FLAG: isinstance(value, bool),
            Kind.TIME: False,
        }[kind]
        if not fits:
            raise misfit(
                position,
                f"{of} holds {kind}, so it cannot be compared with this",
                hint=_FORMS[kind],
            )
        return value


_FORMS = {
    Kind.TEXT: 'Put it in quotes, for example "3".',
    Kind.NUMBER: "Write a number, without quotes.",
    Kind.FLAG: "Write true or false, without quotes.",
    Kind.TIME: 'Write "2026-01-31T12:00:00Z".',
}
