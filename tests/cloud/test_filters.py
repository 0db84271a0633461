"""The filter language: what it means, where it complains, and that SQL agrees with Python."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from edgefleet_cloud.filters import FilterError, Kind, Schema, condition, matches, parse, render
from edgefleet_cloud.filters.tree import And, Compare, Exists, Field, In, Like, Node, Not, Or

SCHEMA = Schema(
    {"id": Kind.TEXT, "size": Kind.NUMBER, "online": Kind.FLAG, "last_seen": Kind.TIME},
    frozenset({"labels"}),
)
TABLE = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("id", sa.String),
    sa.Column("size", sa.Integer),
    sa.Column("online", sa.Boolean),
    sa.Column("last_seen", sa.String),
    sa.Column("labels", sa.JSON),
)
CAM = {
    "id": "cam-3",
    "size": 7,
    "online": True,
    "last_seen": "2026-01-31T12:00:00.000Z",
    "labels": {"site": "berlin", "hw": "rpi5", "note": "50% [new]?"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('labels.site == "berlin" and labels.hw in ("rpi5","nano") and not id == "cam-1"', True),
        ("labels.site == 'paris' or id like 'cam-*'", True),
        ('labels.site == "paris" or id == "x" and id == "cam-3"', False),
        ('not (labels.site == "berlin" or online == true)', False),
        ('labels.missing != "x"', True),
        ('labels.missing == "x"', False),
        ('not labels.missing < "x"', True),
        ('labels.missing not in ("x")', True),
        ("exists(labels.site) and not exists(labels.missing)", True),
        ("size >= 7 and size < 7.5 and size in (1, 7)", True),
        ("online != false", True),
        ('last_seen > "2026-01-31T11:59:59Z"', True),
        ('last_seen == "2026-01-31T12:00:00Z"', True),
        ('id like "cam"', False),
        ('id like "*"', True),
        ('id like "CAM-*"', False),
        ('id like "c*m*3"', True),
        ('id like "cam-3*3"', False),
        ('labels.note like "50% [*]?"', True),
        ('labels.note like "50_ [*]?"', False),
        ('labels.note not like "*[!new]*"', True),
    ],
)
def test_a_filter_means_what_it_says(text: str, expected: bool) -> None:
    """Python and SQL both give the answer that the words suggest."""
    node = parse(text, SCHEMA)
    assert matches(node, CAM) is expected
    assert _select(node, [CAM]) == ([0] if expected else [])


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "empty"),
        ("   ", 0, "empty"),
        ('id = "a"', 3, "Equality is '=='"),
        ('id == "a" && id == "b"', 10, "Write 'and'"),
        ('id == "a" AND id == "b"', 10, "Write 'and'"),
        ('id == "a', 6, "no closing quote"),
        ("id == cam", 6, "in quotes"),
        ('id == "a" id', 10, "'and', 'or' or the end"),
        ('(id == "a"', 10, "it ends where ')'"),
        ("id in ()", 7, "a value"),
        ('id in "a"', 6, "'('"),
        ('id not == "a"', 7, "'in' or 'like' after 'not'"),
        ('lables.site == "x"', 0, "Did you mean 'labels"),
        ('labels.Site == "x"', 0, "cannot be a key"),
        ("labels.ring == 3", 15, "in quotes"),
        ('size == "3"', 8, "without quotes"),
        ("online < true", 7, "no order"),
        ('online == "true"', 10, "without quotes"),
        ('last_seen > "yesterday"', 12, "not a time"),
        ('last_seen > "2026-01-31T12:00:00+01:00"', 12, "not a time"),
        ('size like "3*"', 10, "not text"),
        ('id like "*********"', 8, "8 stars"),
        ('id == "a\\n"', 8, "means nothing"),
        ('id == "a\x00"', 8, "cannot stand"),
        ("size == 1e9", 8, "fits nothing"),
        ("size == 12345678901234567890", 8, "fits nothing"),
        ("(" * 17 + "online == true" + ")" * 17, 16, "deeper than 16"),
        ("not " * 17 + "online == true", 64, "deeper than 16"),
        (" or ".join(["size == 1"] * 65), 64 * 13, "64 times"),
        ("size in (" + ",".join(["1"] * 201) + ")", 8, "200 values"),
        (" " * 2001, 2000, "2000 characters"),
        ("exists id", 7, "'('"),
        ("==", 0, "a field"),
    ],
)
def test_a_bad_filter_says_where_and_what_to_do(text: str, position: int, words: str) -> None:
    """Each mistake is found at its character, with what to write instead."""
    with pytest.raises(FilterError) as caught:
        parse(text, SCHEMA)
    assert caught.value.position == position
    assert words in str(caught.value)
    assert caught.value.code == "invalid_filter"


def test_without_sqlite_a_glob_is_an_escaped_like() -> None:
    """On another database `like` keeps its meaning through LIKE with an escape."""
    node = parse('id like "50%_!*"', SCHEMA)
    compiled = condition(node, TABLE.c).compile(dialect=postgresql.dialect())
    assert "LIKE" in str(compiled)
    (bound,) = compiled.params.values()
    processor = compiled._bind_processors
    assert [process(bound) for process in processor.values()] == ["50!%!_!!%"]


TEXT = st.text(st.sampled_from("ab*?[]%_\\\"'! é😀-"), max_size=5)
KEYS = st.sampled_from(["site", "hw-rev", "a_b"])
TIMES = st.sampled_from(["2026-01-31T12:00:00.000Z", "2026-02-01T00:00:00.000Z"])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": TEXT,
    "size": st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5])),
    "online": st.booleans(),
    "last_seen": TIMES,
}


@st.composite
def terms(draw: st.DrawFn) -> Node:
    """Draw one comparison that the schema allows."""
    name = draw(st.sampled_from([*VALUES, "labels"]))
    field = Field(name, draw(KEYS) if name == "labels" else None)
    values = VALUES.get(name, TEXT)
    form = draw(st.sampled_from(["compare", "in", "like", "exists"]))
    if form == "exists":
        return Exists(field)
    if form == "in":
        return In(field, tuple(draw(st.lists(values, min_size=1, max_size=3))))
    if form == "like" and values is TEXT:
        return Like(field, draw(TEXT))
    orders = ["=="] if name == "online" else ["==", "<", "<=", ">", ">="]
    return Compare(field, draw(st.sampled_from(orders)), draw(values))


NODES = st.recursive(
    terms(),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda nodes: And(tuple(nodes))),
        st.lists(inner, min_size=2, max_size=3).map(lambda nodes: Or(tuple(nodes))),
    ),
    max_leaves=8,
)
RESOURCES = st.fixed_dictionaries(
    {
        "id": st.none() | TEXT,
        "size": st.none() | st.integers(-3, 3),
        "online": st.none() | st.booleans(),
        "last_seen": st.none() | TIMES,
        "labels": st.dictionaries(KEYS, TEXT, max_size=3),
    }
)


@settings(max_examples=300, deadline=None)
@given(NODES, st.lists(RESOURCES, min_size=1, max_size=6))
def test_sql_and_python_agree(node: Node, resources: list[dict[str, Any]]) -> None:
    """Any filter picks the same rows in SQLite as in Python, missing values included."""
    expected = [index for index, each in enumerate(resources) if matches(node, each)]
    assert _select(node, resources) == expected


@settings(max_examples=200, deadline=None)
@given(NODES)
def test_a_rendered_filter_parses_to_the_same_tree(node: Node) -> None:
    """The canonical spelling loses nothing."""
    assert parse(render(node), SCHEMA) == node


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("id labels.site size not and or in like exists()=<>!\"'\\,1*")))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Whatever is typed is understood or refused with a position inside the text."""
    try:
        parse(text, SCHEMA)
    except FilterError as error:
        assert 0 <= error.position <= len(text)


ENGINE = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
TABLE.metadata.create_all(ENGINE)


def _select(node: Node, resources: list[dict[str, Any]]) -> list[int]:
    with ENGINE.connect() as connection:
        rows = [{"row": index, **each} for index, each in enumerate(resources)]
        connection.execute(TABLE.insert(), rows)
        query = sa.select(TABLE.c.row).where(condition(node, TABLE.c)).order_by(TABLE.c.row)
        found = list(connection.execute(query).scalars())
        connection.rollback()
    return found
