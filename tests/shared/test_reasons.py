"""Reasons: any line of text survives the header, and nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import reasons
from edgefleet_shared.errors import InvalidInputError

LINES = st.text(st.characters(exclude_categories=("C", "Z")), max_size=reasons.MAX_CHARACTERS)


@given(LINES)
def test_a_line_survives_the_header(line):
    """Encoded it is printable ASCII, decoded it is what was said."""
    value = reasons.encode_reason(line)
    assert value.isascii()
    assert not value or value.isprintable()
    assert reasons.decode_reason(value) == line


@pytest.mark.parametrize("line", ["a\nb", "\x00", "x" * 501, "\ud800", "a\u2028b"])
def test_what_is_no_line_is_refused(line):
    """Line breaks, control characters, lone surrogates and essays are no reasons."""
    with pytest.raises(InvalidInputError) as caught:
        reasons.encode_reason(line)
    assert caught.value.code == "reason"


def test_ascii_is_readable_on_the_wire():
    """Who types the header by hand, or reads a trace, sees plain words."""
    assert reasons.encode_reason("moved to rack 7, see #12") == "moved to rack 7, see #12"
    assert reasons.decode_reason("moved to rack 7, see #12") == "moved to rack 7, see #12"
