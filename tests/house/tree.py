"""The tree as git sees it, and the Python in it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "shared": "edgefleet_shared",
    "agent": "edgefleet_agent",
    "cloud": "edgefleet_cloud",
    "provisioning": "edgefleet_provisioning",
}


@cache
def files(suffix: str = "") -> tuple[Path, ...]:
    """Return every file that is committed or could be, from the root, with a suffix."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = (Path(name) for name in listed.split("\0") if name)
    return tuple(sorted(p for p in found if p.name.endswith(suffix) and (ROOT / p).is_file()))


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / path).read_text())


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    """Yield every function of a file, methods and inner ones too."""
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Return how many lines a function's body spans, its docstring aside."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0
