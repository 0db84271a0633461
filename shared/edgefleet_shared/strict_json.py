"""JSON as an attacker may write it, read strictly: capped, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from edgefleet_shared.errors import InvalidInputError

T = TypeVar("T")
MAX_INT = 2**53 - 1  # beyond it, languages disagree on the value
MAX_DEPTH = 32

_FOREIGN = object()
_DIGITS = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
_LONG = 16 * b"0"  # 2^53 has as many digits
# A bracket, or a string, skipped whole; possessive, so that no text makes it go back.
_TOKENS = re.compile(r'[\[{]|[\]}]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def decode(data: bytes, kind: type[T], *, max_bytes: int, what: str) -> T:
    """Decode `data` into `kind`, a msgspec Struct or a builtin type.

    Args:
        data: UTF-8 JSON text.
        kind: What the document must be.
        max_bytes: Longest text that is looked at.
        what: The document's name, for the message.

    Raises:
        InvalidInputError: Too long, not UTF-8, not JSON, duplicate keys, NaN, an integer beyond
            2^53, a lone surrogate, nested deeper than 32, or not of the shape of `kind`.
    """
    if len(data) > max_bytes:
        raise _bad(what, f"it has {len(data)} bytes and may have {max_bytes}")
    try:
        # json.loads would take UTF-16 and surrogates in bytes; text it takes as it is.
        text = data.decode()
        _check_depth(text)
        ours = _as_we_write(data, kind)
        if ours is not _FOREIGN:
            return cast("T", ours)
        tree = _DECODER.decode(text)
        if "\\u" in text:  # a lone surrogate can only be written so, and fails here
            json.dumps(tree, ensure_ascii=False).encode()
        return msgspec.convert(tree, kind, str_keys=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise _bad(what, str(error)[:200]) from error


def encode(document: Any) -> bytes:
    """Encode a Struct or builtin as compact JSON, keys in the order of their declaration.

    Raises:
        InvalidInputError: Text holds a lone surrogate, as arguments that are not UTF-8 do.
    """
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"A text cannot be written as JSON: {error}.", code="malformed"
        ) from error


def _as_we_write(data: bytes, kind: type[T]) -> T | object:
    """Return the document at once if `encode` would write these very bytes, else `_FOREIGN`.

    Then there is no second way to read them: no key stands twice, no text is escaped, no number is
    written in another way; and none is long enough to be beyond 2^53. It takes a fifth of the time.
    """
    if _LONG not in data.translate(_DIGITS):
        try:
            found = msgspec.json.decode(data, type=kind)
            if msgspec.json.encode(found) == data:
                return found
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # the slow way says what is wrong
    return _FOREIGN


def _bad(what: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"The {what} cannot be read: {why}.", code="malformed")


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the parser recurses; brackets in strings do not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        elif first in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _small_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INT:
        raise ValueError("an integer is beyond 2^53")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError("a number is not finite")
    return value


# Made once: to make one takes as long as to read a small document.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_constant=_refuse,
    parse_int=_small_int,
    parse_float=_finite,
)
