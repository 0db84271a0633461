"""A subset of the hub's query language, over twins; what it does not know it refuses.

    SELECT * | field [AS name], .. FROM devices | devices.modules [WHERE condition]

A condition compares fields with literals (=, !=, <>, <, <=, >, >=, IN, NIN), asks
`is_defined(field)`, and joins such by AND, OR, NOT and parentheses.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgefleet_provisioning.iothub_double.refusals import bad

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\")|(?P<number>-?\d+(?:\.\d+)?)"
    r"|(?P<word>\$?[A-Za-z_][\w$]*(?:\.[\w$]+|\[\[[^\]]+\]\])*)|(?P<sign><=|>=|!=|<>|[=<>(),*\[\]]))"
)
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LITERALS = {"true": True, "false": False, "null": None}
Condition = Callable[[Mapping[str, Any]], bool]
_MISSING = object()


class Query:
    """A query that has been read.

    Args:
        text: As the service sends it.

    Raises:
        HubError: 400; it is wrong, or of a part of the language that the double does not know.
    """

    def __init__(self, text: str) -> None:
        self._tokens = _split(text)
        self._at = 0
        self._need("SELECT")
        self.fields = self._columns()
        self._need("FROM")
        source = self._word().lower()
        if source not in {"devices", "devices.modules"}:
            raise bad(f"The double knows no collection {source}.", "QueryNotSupported")
        self.modules = source == "devices.modules"
        self.condition: Condition = lambda _: True
        if self._take("WHERE"):
            self.condition = self._either()
        if self._at < len(self._tokens):
            raise self._unknown()

    @property
    def kind(self) -> str:
        """What its rows are: twins, or what was selected of them."""
        return "Raw" if self.fields else "Twin"

    def row(self, twin: Mapping[str, Any]) -> dict[str, Any]:
        """Return what it selects of a twin."""
        if not self.fields:
            return dict(twin)
        found = ((name, find(twin, path)) for path, name in self.fields)
        return {name: value for name, value in found if value is not _MISSING}

    def _columns(self) -> list[tuple[str, str]]:
        if self._take("*"):
            return []
        columns = []
        while True:
            path = self._word()
            name = self._word() if self._take("AS") else path.rpartition(".")[2]
            columns.append((path, name))
            if not self._take(","):
                return columns

    def _either(self) -> Condition:
        parts = [self._both()]
        while self._take("OR"):
            parts.append(self._both())
        return lambda twin: any(part(twin) for part in parts)

    def _both(self) -> Condition:
        parts = [self._one()]
        while self._take("AND"):
            parts.append(self._one())
        return lambda twin: all(part(twin) for part in parts)

    def _one(self) -> Condition:
        if self._take("NOT"):
            inner = self._one()
            return lambda twin: not inner(twin)
        if self._take("("):
            inner = self._either()
            self._need(")")
            return inner
        path = self._word()
        if path.lower() == "is_defined":
            self._need("(")
            asked = self._word()
            self._need(")")
            return lambda twin: find(twin, asked) is not _MISSING
        return self._comparison(path)

    def _comparison(self, path: str) -> Condition:
        for word in ("IN", "NIN"):
            if self._take(word):
                wanted, sense = self._literals(), word == "IN"
                return lambda twin: (find(twin, path) in wanted) is sense
        kind, sign = self._next()
        if kind != "sign" or sign not in _SIGNS:
            self._at -= 1
            raise self._unknown()
        literal, compare = self._literal(), _SIGNS[sign]
        return lambda twin: _holds(compare, find(twin, path), literal)

    def _literals(self) -> list[Any]:
        self._need("[")
        found = [self._literal()]
        while self._take(","):
            found.append(self._literal())
        self._need("]")
        return found

    def _literal(self) -> Any:
        kind, text = self._next()
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind == "word" and text.lower() in _LITERALS:
            return _LITERALS[text.lower()]
        self._at -= 1
        raise self._unknown()

    def _word(self) -> str:
        kind, text = self._next()
        if kind != "word":
            self._at -= 1
            raise self._unknown()
        return text

    def _take(self, wanted: str) -> bool:
        here = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        found = here[0] != "text" and here[1].upper() == wanted
        self._at += found
        return found

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            raise self._unknown()

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise bad("The query ends too early.", "InvalidQuery")
        self._at += 1
        return self._tokens[self._at - 1]

    def _unknown(self) -> Exception:
        here = self._tokens[self._at][1] if self._at < len(self._tokens) else "its end"
        return bad(f"The query cannot be read at {here}.", "InvalidQuery")


def find(twin: Mapping[str, Any], path: str) -> Any:
    """Return what lies under a dotted path of a twin, or a mark that nothing does."""
    found: Any = twin
    for step in re.split(r"\.|\[\[|\]\]", path.removeprefix("devices.")):
        if not step:
            continue
        if not isinstance(found, Mapping) or step not in found:
            return _MISSING
        found = found[step]
    return found


def _holds(compare: Callable[[Any, Any], bool], found: Any, literal: Any) -> bool:
    if found is _MISSING:
        return False
    alike = isinstance(found, int | float) and isinstance(literal, int | float)
    if not alike and type(found) is not type(literal):
        return compare is operator.ne
    return bool(compare(found, literal))


def _split(text: str) -> list[tuple[str, str]]:
    found, at, text = [], 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise bad(f"The query cannot be read at {text[at : at + 20]!r}.", "InvalidQuery")
        kind = str(match.lastgroup)
        found.append((kind, match[kind]))
        at = match.end()
    return found
