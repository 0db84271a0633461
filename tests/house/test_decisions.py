"""Decisions are numbered without gaps, dated, and say what was not taken."""

from __future__ import annotations

import datetime as dt
import re

from tests.house.documents import documents, text_of
from tests.house.tree import ROOT

DECISIONS = [path for path in documents() if path.parent.name == "decisions"]


def test_numbers_are_unique_and_without_gaps():
    """0001, 0002 and on: two people cannot both have taken the next number."""
    names = [path.name for path in DECISIONS]
    assert all(re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name) for name in names)
    assert sorted(int(name[:4]) for name in names) == list(range(1, len(names) + 1))


def test_each_is_dated_and_has_its_parts():
    """Number in the title, a date that is one, a status, and context, options, outcome."""
    for path in DECISIONS:
        lines = text_of(path).splitlines()
        assert lines[0].startswith(f"# {path.name[:4]}. ")
        assert dt.date.fromisoformat(lines[2].removeprefix("Date: "))
        assert re.fullmatch(r"Status: (accepted|superseded by \d{4})", lines[3])
        parts = [line for line in lines if line.startswith("## ")]
        assert parts == ["## Context", "## Options", "## Outcome"]


def test_there_are_decisions_to_read():
    """The folder that README names is not empty."""
    assert (ROOT / "docs/decisions").is_dir()
    assert len(DECISIONS) >= 11
