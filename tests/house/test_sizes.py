"""No god files, no god functions, no drawers."""

from __future__ import annotations

import pytest

from tests.house import tree
from tests.house.sizes import BODY_END, FILE_END, long_bodies, long_files

DRAWERS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "lib"}


def test_no_file_is_too_long():
    """Every Python file ends before line 400; over 250 it is time to look for a second room."""
    assert long_files(FILE_END) == []


def test_no_function_is_too_long():
    """Every function's body, docstring aside, fits on a screen of 50 lines."""
    assert long_bodies(BODY_END) == []


def test_no_module_is_a_drawer():
    """What a module is called says what is in it."""
    assert [p for p in tree.files(".py") if {*p.with_suffix("").parts} & DRAWERS] == []


@pytest.mark.parametrize(("source", "lines"), [
    ('def f():\n    """Doc.\n\n    More.\n    """\n    a = 1\n    return a\n', 2),
    ("def f(\n    a,\n):\n    return a\n", 1),
    ('def f():\n    """Doc."""\n', 0),
])  # fmt: skip
def test_the_ruler_measures_bodies(source, lines):
    """A body is counted without its signature and its docstring."""
    (function,) = tree.ast.parse(source).body
    assert tree.body_lines(function) == lines
