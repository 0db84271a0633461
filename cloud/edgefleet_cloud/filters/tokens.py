"""A filter's text, cut into tokens that know where they stood."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from edgefleet_cloud.filters.errors import misfit
from edgefleet_cloud.filters.tree import Value

MAX_CHARACTERS = 2000

Sort = Literal["word", "value", "sign", "end"]

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')
    |(?P<number>-?[0-9]{1,15}(?:\.[0-9]{1,6})?(?![0-9A-Za-z_.-]))
    |(?P<word>[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)
    |(?P<sign>==|!=|<=|>=|<|>|\(|\)|,)""",
    re.VERBOSE | re.DOTALL,
)
_INSTEAD = {
    "=": "Equality is '=='.",
    "&": "Write 'and'.",
    "|": "Write 'or'.",
    "!": "Write 'not', or '!=' between two sides.",
    '"': "The text that begins here has no closing quote.",
    "'": "The text that begins here has no closing quote.",
    "“": "Use straight quotes.",
    "”": "Use straight quotes.",
}


class Token(NamedTuple):
    """One token: its sort, its text as written, its value if it is one, and its offset."""

    sort: Sort
    text: str
    value: Value
    position: int


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a filter and, last, one of sort `end`.

    Raises:
        FilterError: Too long, or a character that nothing begins with.
    """
    if len(text) > MAX_CHARACTERS:
        raise misfit(
            MAX_CHARACTERS,
            f"it may have {MAX_CHARACTERS} characters and has {len(text)}",
            hint="Give the devices a label of their own and filter on that.",
        )
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise misfit(
                position,
                f"{text[position]!r} fits nothing here",
                hint=_INSTEAD.get(text[position], "Text stands in quotes."),
            )
        if found.lastgroup != "space":
            yield _token(found)
        position = found.end()
    yield Token("end", "", "", position)


def _token(found: re.Match[str]) -> Token:
    text, position = found.group(), found.start()
    if found.lastgroup == "string":
        return Token("value", text, _unquoted(text, position), position)
    if found.lastgroup == "number":
        return Token("value", text, float(text) if "." in text else int(text), position)
    if text in {"true", "false"}:
        return Token("value", text, text == "true", position)
    return Token("word" if found.lastgroup == "word" else "sign", text, "", position)


def _unquoted(text: str, position: int) -> str:
    body = text[1:-1]
    for offset, character in enumerate(body, position + 1):
        # Databases stop at a NUL, and a lone surrogate is not text.
        if character < " " or "\ud800" <= character <= "\udfff":
            raise misfit(offset, f"{character!r} cannot stand in text")
    odd = re.search(r"""\\[^"'\\]""", re.sub(r"\\\\", "  ", body))
    if odd:
        raise misfit(
            position + 1 + odd.start(),
            f"{odd.group()!r} means nothing",
            hint="After a backslash comes a quote or a backslash.",
        )
    return re.sub(r"""\\(["'\\])""", r"\1", body)
