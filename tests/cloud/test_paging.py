"""Cursor paging: every item once, whatever happens between two pages."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlmodel import select

from edgefleet_cloud import paging
from edgefleet_cloud.models.tables import ModelRow
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_shared.errors import InvalidInputError

SORTABLE = {"name": ModelRow.name, "created": ModelRow.created}


def _page(database, **query):
    with database.read() as session:
        rows, token = paginate(
            session, select(ModelRow), PageQuery(**query), SORTABLE, ModelRow.name, default="name"
        )
        return [row.name for row in rows], token


def _walk(database, **query):
    found, token = [], ""
    while True:
        names, token = _page(database, page_token=token, **query)
        found += names
        if not token:
            return found


def _add(database, *models):
    with database.write() as session:
        for name, created in models:
            session.add(ModelRow(name=name, created=created))


@pytest.fixture
def filled(database):
    """Seven models, many of them made at the same time."""
    _add(database, *((name, "t1" if name in "bdf" else "t2") for name in "gfedcba"))
    return database


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("", "abcdefg"),
        ("name", "abcdefg"),
        ("name desc", "gfedcba"),
        ("created", "bdfaceg"),
        ("created desc", "gecafdb"),
    ],
)
def test_every_item_once_and_in_order(filled, size, order, expected):
    """In pages of any size, in any order, equals included, each item comes exactly once."""
    assert "".join(_walk(filled, page_size=size, order_by=order)) == expected


def test_what_comes_between_two_pages_shifts_nothing(filled):
    """An item that appears or vanishes before the cursor neither repeats nor hides another."""
    first, token = _page(filled, page_size=3)
    _add(filled, ("aa", "t3"), ("ee", "t3"))
    with filled.write() as session:
        session.delete(session.get(ModelRow, "a"))
    second, _ = _page(filled, page_size=9, page_token=token)
    assert (first, second) == (["a", "b", "c"], ["d", "e", "ee", "f", "g"])


def test_an_empty_list(database):
    """A list without items is one empty page."""
    assert _page(database) == ([], "")


def test_a_token_belongs_to_its_query(filled):
    """A token of another order or filter is refused instead of skipping items."""
    _, token = _page(filled, page_size=2, order_by="created")
    for other in ({"order_by": "name"}, {"order_by": "created", "filter": "x"}, {}):
        with pytest.raises(InvalidInputError) as caught:
            _page(filled, page_token=token, **other)
        assert caught.value.code == "page_token"


@example(text="", position=17, flip=ord("R"))
@given(st.text(max_size=60), st.integers(0, 200), st.integers(1, 255))
def test_no_token_but_ours(text, position, flip):
    """Neither any text nor one of our tokens with a changed character is taken for a token."""
    with pytest.raises(InvalidInputError):
        paging._read_token(text, "scope", 1)
    token = paging._write_token(["a"], "scope")
    assert paging._read_token(token, "scope", 1) == ["a"]
    place = position % len(token)
    changed = token[:place] + chr(flip) + token[place + 1 :]
    if changed != token:
        with pytest.raises(InvalidInputError):
            paging._read_token(changed, "scope", 1)
