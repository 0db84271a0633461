"""What the operator reads: tables on a terminal, plain columns elsewhere, JSON for machines.

Results go to standard output, everything on the way there to standard error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgefleet_shared.errors import EdgeFleetError

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(value: object) -> str:
    """Return text without control characters: a server's words must not steer a terminal."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return CONTROL.sub("?", str(value))


class Output:
    """One command's voice.

    Args:
        as_json: Print the result as one JSON document on one line.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = Console(highlight=False, soft_wrap=True)

    @property
    def interactive(self) -> bool:
        """Whether a person reads along and can answer."""
        return sys.stdin.isatty() and self.notes.is_terminal and not self.as_json

    def note(self, text: str) -> None:
        """Say something on the way."""
        self.notes.print(escape(clean(text)))

    def result(self, document: Any, text: str) -> None:
        """Give the result: the document for a machine, or the text for a person."""
        if self.as_json:
            self.line(document)
        else:
            self._console.print(escape(clean(text)))

    def line(self, document: Any) -> None:
        """Print one JSON document on one line."""
        sys.stdout.write(json.dumps(document, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    def table(
        self, document: Any, columns: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """Give a list: the document for a machine, or a table for a person."""
        if self.as_json:
            self.line(document)
            return
        cells = [[clean(cell) for cell in row] for row in rows]
        if self._console.is_terminal:
            table = Table(*columns, box=None, header_style="bold", pad_edge=False)
            for row in cells:
                table.add_row(*(escape(cell) for cell in row))
            self._console.print(table)
            return
        lines = [[column.upper() for column in columns], *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
            sys.stdout.write("  ".join(padded).rstrip() + "\n")

    def details(self, document: Any, pairs: Sequence[tuple[str, object]]) -> None:
        """Give one thing: the document for a machine, or name and value a line for a person."""
        if self.as_json:
            self.line(document)
            return
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self._console.print(f"[bold]{name:<{width}}[/bold]  {escape(clean(value))}")


def report(error: EdgeFleetError, *, as_json: bool) -> None:
    """Print an error: one paragraph for a person, `{"error": ...}` for a machine."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": body}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    paragraph = escape(CONTROL.sub("?", f"{error.message} {error.hint}".strip()))
    console.print(f"[red]Error:[/red] {paragraph}")
