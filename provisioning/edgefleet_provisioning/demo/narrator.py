"""Tells what happens, as it happens: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgefleet_shared.steps import Step


class Narrator:
    """Prints one line a fact, with the seconds since the start and the word of the way.

    Args:
        to_stderr: Keep standard output for the one JSON line.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._console = Console(
            file=sys.stderr if to_stderr else sys.stdout, highlight=False, soft_wrap=True
        )
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self.heard: list[Step] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        with self._lock:
            self._console.print(f"\n[bold]{escape(title)}[/bold]")

    def say(self, message: str, step: Step | None = None) -> None:
        """Tell one fact; `step` is the word it belongs to."""
        with self._lock:
            if step is not None and step not in self.heard:
                self.heard.append(step)
            word = f"{step.value if step else '':<9}"
            self._console.print(
                f"[dim]{self.seconds:6.1f} s[/dim]  [cyan]{word}[/cyan] {escape(message)}"
            )

    def command(self, argv: Sequence[str]) -> None:
        """Show a command that a person would type."""
        with self._lock:
            self._console.print(f"[dim]{self.seconds:6.1f} s  $ {escape(shlex.join(argv))}[/dim]")

    def table(self, table: Table) -> None:
        """Print a table."""
        with self._lock:
            self._console.print(table)

    def note(self, text: str) -> None:
        """Print free text."""
        with self._lock:
            self._console.print(escape(text))
