"""JSON from an attacker: what is refused, how fast, and that nothing good is lost."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: float = 0.0


REFUSED: dict[str, bytes] = {
    "nothing at all": b"",
    "not JSON": b"{x:1}",
    "a second document behind the first": b'{"x":1} {"x":1}',
    "a key twice": b'{"x":1,"x":2}',
    "a key twice, once escaped": b'{"x":1,"\\u0078":2}',
    "a key twice, deep inside": b'{"x":1,"y":{"a":[{"b":1,"b":1}]}}',
    "NaN": b'{"x":1,"y":NaN}',
    "Infinity": b'{"x":1,"y":Infinity}',
    "minus Infinity": b'{"x":1,"y":-Infinity}',
    "a float that overflows": b'{"x":1,"y":1e400}',
    "a negative float that overflows": b'{"x":1,"y":-1e400}',
    "2^53 as an integer": b'{"x":9007199254740992}',
    "2^53 + 1 as an integer": b'{"x":9007199254740993}',
    "-2^53 as an integer": b'{"x":-9007199254740992}',
    "an integer of 5000 digits": b'{"x":' + b"9" * 5000 + b"}",
    "an integer written as a float": b'{"x":1.0}',
    "an integer written with an exponent": b'{"x":1e2}',
    "a boolean for an integer": b'{"x":true}',
    "text for an integer": b'{"x":"1"}',
    "null for an integer": b'{"x":null}',
    "an unknown field where none is allowed": b'{"x":1,"z":1}',
    "a missing field": b"{}",
    "another shape": b"[1]",
    "a lone surrogate, escaped": b'{"x":1,"\\ud800":1}',
    "a lone surrogate, raw": b'{"x":1,"\xed\xa0\x80":1}',
    "bytes that are not UTF-8": b'{"x":1,"\xff":1}',
    "UTF-16": '{"x":1}'.encode("utf-16"),
    "UTF-32": '{"x":1}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"x":1}',
    "33 levels": b"[" * 33 + b"]" * 33,
    "33 levels of objects": b'{"x":' * 33 + b"1" + b"}" * 33,
    "brackets in a string, then too deep": b'["[[[[",' * 33 + b"1" + b"]" * 33,
    "an escaped quote that hides nothing": b'["\\"",' * 33 + b"1" + b"]" * 33,
    "an unterminated string": b'{"x":"' + b"[" * 64,
    "a backslash at the very end": b'["' + b"[" * 64 + b"\\",
    "a control character in a string": b'{"x":1,"\n":2}',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refuses_what_an_attacker_may_write(text):
    """Every trick of the table is refused as malformed, and the message names the document."""
    with pytest.raises(InvalidInputError, match="The point cannot be read") as refused:
        strict_json.decode(text, Point, max_bytes=1 << 20, what="point")
    assert refused.value.code == "malformed"


def test_tricks_fail_without_a_schema_too():
    """The tricks that are JSON's own are refused even where any document would do."""
    for name in ("a key twice", "NaN", "a float that overflows", "2^53 + 1 as an integer",
                 "a lone surrogate, escaped", "UTF-16", "33 levels"):  # fmt: skip
        with pytest.raises(InvalidInputError):
            strict_json.decode(REFUSED[name], Any, max_bytes=1 << 20, what="document")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 200_000,
        b'["' + b"[" * 200_000,
        b'[""' + b',""' * 65_000 + b"[" * 40,
        b'"' + b'\\"' * 100_000 + b"[" * 40,
        b'"' + b"\\" * 200_001 + b"[" * 40,
    ],
)
def test_deep_nesting_is_refused_at_once(text):
    """200 000 brackets, bare or among strings, cost less than 50 ms and no recursion."""
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        with pytest.raises(InvalidInputError):
            strict_json.decode(text, Any, max_bytes=1 << 20, what="bomb")
        best = min(best, time.perf_counter() - start)
    assert best < 0.05


def test_length_is_looked_at_first():
    """A text over the cap is refused by its length alone; one at the cap is read."""
    text = b'{"x":1}'
    assert strict_json.decode(text, Point, max_bytes=len(text), what="point") == Point(1)
    with pytest.raises(InvalidInputError, match="7 bytes and may have 6"):
        strict_json.decode(text, Point, max_bytes=6, what="point")


@pytest.mark.parametrize("value", [2**53 - 1, -(2**53) + 1, 0, -1])
def test_integers_up_to_2_to_the_53_are_read_exactly(value):
    """The largest integers on which all languages agree pass unchanged."""
    assert strict_json.decode(str(value).encode(), int, max_bytes=99, what="number") == value


def test_brackets_in_strings_do_not_count():
    """A flat document full of brackets in strings, escaped quotes among them, is read."""
    document = {"a": '[{"' * 200, "b": "\\" * 99, "c": ['"', "]", "\\"]}
    text = json.dumps(document).encode()
    assert strict_json.decode(text, dict[str, Any], max_bytes=4096, what="document") == document


def test_32_levels_are_read():
    """The depth limit itself is allowed."""
    assert strict_json.decode(b"[" * 32 + b"]" * 32, Any, max_bytes=99, what="list")


def test_integer_keys_are_read_from_text_one_way_only():
    """`dict[int, int]` reads canonical decimal keys, and no second spelling of one."""
    read = strict_json.decode(b'{"7":1}', dict[int, int], max_bytes=99, what="counts")
    assert read == {7: 1}
    for text in (b'{"07":1}', b'{"+7":1}', b'{" 7":1}', b'{"7.0":1}'):
        with pytest.raises(InvalidInputError):
            strict_json.decode(text, dict[int, int], max_bytes=99, what="counts")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(documents)
def test_what_we_encode_we_decode(document):
    """Every document within the rules survives encode and decode."""
    text = strict_json.encode(document)
    assert strict_json.decode(text, Any, max_bytes=1 << 20, what="document") == document


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0 1e', max_size=200))
def test_no_input_raises_anything_else(noise):
    """Whatever the bytes, the answer is a document or InvalidInputError, as json would agree."""
    data = noise if isinstance(noise, bytes) else noise.encode()
    try:
        found = strict_json.decode(data, Any, max_bytes=1 << 20, what="noise")
    except InvalidInputError:
        return
    assert json.loads(data) == found


def outcome(text: bytes) -> object:
    """Return what a text is read as, or that it is refused."""
    try:
        return strict_json.decode(text, Point, max_bytes=1 << 20, what="point")
    except InvalidInputError as error:
        return error.code


@given(st.integers(0, 60), st.binary(min_size=0, max_size=3), st.integers(-(2**60), 2**60))
def test_the_quick_way_reads_nothing_that_the_slow_way_does_not(place, noise, number):
    """Around what our own writer writes, both ways agree on every text, to the value."""
    written = strict_json.encode({"x": number, "y": 0.5})
    text = written[:place] + noise + written[place + len(noise) :]
    quick = strict_json._as_we_write
    try:
        both = [outcome(text), outcome(written)]
        strict_json._as_we_write = lambda _data, _kind: strict_json._FOREIGN
        assert [outcome(text), outcome(written)] == both
    finally:
        strict_json._as_we_write = quick
