"""docs/support-matrix.md: each row names a test that exists, or says that nobody has seen it."""

from __future__ import annotations

import re

import pytest

from tests.house.documents import text_of
from tests.house.tree import ROOT

TEXT = text_of("docs/support-matrix.md")
HEADS = ("| what |", "|---|")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(HEADS)]


def test_there_are_rows_for_every_kind():
    """Runtimes, sandbox, accelerators and doors each have a table."""
    assert len(ROWS) > 20
    for word in ("onnxruntime", "ai-edge-litert", "dfx-mgr", "Verilator", "Landlock", "gRPC"):
        assert any(word in row for row in ROWS), word


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_a_test_or_says_untested(row):
    """What stands in the last cell is a test file of this tree, or the words of somebody honest."""
    last = row.strip().strip("|").split("|")[-1]
    named = re.findall(r"`(tests/[^`]+)`", last)
    assert named or "untested on hardware" in last
    for path in named:
        assert (ROOT / path).is_file(), path
