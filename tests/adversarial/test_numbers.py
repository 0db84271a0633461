"""Every row of the threat tests, 1 to 60, has a test, and none is passed over in silence."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
ROWS = range(1, 61)
SILENCES = {"skip", "skipif", "xfail", "importorskip"}
NUMBERED = re.compile(r"test_(\d\d)_[a-z0-9_]+")


def trees() -> dict[Path, ast.Module]:
    """Return the syntax tree of every test file here."""
    return {path: ast.parse(path.read_text()) for path in sorted(HERE.glob("test_*.py"))}


def numbered() -> dict[int, list[str]]:
    """Return row number to the tests that bear it."""
    found: dict[int, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and (match := NUMBERED.fullmatch(node.name)):
                found[int(match[1])].append(f"{path.name}::{node.name}")
    return found


def silences(tree: ast.AST) -> list[ast.expr]:
    """Return every way in which a test of a file may not run: marks and calls of pytest."""
    return [
        call
        for node in ast.walk(tree)
        for call in ([node] if isinstance(node, ast.Call) else getattr(node, "decorator_list", []))
        if _name(call) in SILENCES
    ]


def _name(node: ast.expr) -> str:
    target = node.func if isinstance(node, ast.Call) else node
    return target.attr if isinstance(target, ast.Attribute) else ""


def reason(node: ast.expr) -> str:
    """Return the reason that is written beside a skip, or ''."""
    if not isinstance(node, ast.Call):
        return ""
    given = [keyword.value for keyword in node.keywords if keyword.arg in {"reason", "msg"}]
    if _name(node) == "skip":
        given += node.args[:1]
    return " ".join(ast.unparse(value) for value in given)


def test_all_sixty_rows_have_a_test():
    """No number is missing, and none is beyond the sixty."""
    found = numbered()
    assert [row for row in ROWS if row not in found] == []
    assert [row for row in found if row not in ROWS] == []


def test_no_row_is_skipped_without_a_written_reason():
    """Whatever may keep a test from running says why, in words."""
    silent = [
        f"{path.name}:{call.lineno} {ast.unparse(call)}"
        for path, tree in trees().items()
        for call in silences(tree)
        if len(reason(call)) < 12
    ]
    assert silent == []
