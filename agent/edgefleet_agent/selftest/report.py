"""What a selftest found, as rows; and the same for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

State = Literal["passed", "failed", "absent"]
SIGNS: dict[State, str] = {"passed": "ok", "failed": "FAILED", "absent": "absent"}


class Row(msgspec.Struct, frozen=True):
    """One thing that was tried; `why` says what is wrong or missing, `figures` what was measured.

    Names of figures end in their unit: `_ms`, `_us`, `_kb`, `_mb`, `_pct`; counts have none.
    """

    part: str
    name: str
    state: State
    why: str = ""
    figures: dict[str, Any] = {}


class Report(msgspec.Struct, frozen=True):
    """All of it: which agent, when, on what machine, and the rows."""

    agent: str
    started: str
    machine: dict[str, Any]
    rows: list[Row]
    format: Literal[1] = 1

    def passed(self, demanded: str = "") -> bool:
        """Return whether nothing failed and the accelerator that was asked for is here."""
        if self.failed():
            return False
        return not demanded or any(
            row.part == "accelerator" and row.name == demanded and row.state == "passed"
            for row in self.rows
        )

    def failed(self) -> bool:
        """Return whether anything failed; what is absent did not."""
        return any(row.state == "failed" for row in self.rows)


def table(report: Report) -> str:
    """Return the report as aligned lines."""
    head = f"{report.agent} on " + ", ".join(
        str(report.machine[key]) for key in ("processor", "machine", "system", "python")
    )
    width = max(len(f"{row.part} {row.name}") for row in report.rows)
    lines = [head, ""]
    for row in report.rows:
        title = f"{row.part} {row.name}".ljust(width)
        text = "; ".join(filter(None, [row.why, _figures(row.figures.items())]))
        lines.append(f"  {title}  {SIGNS[row.state]:<6}  {text}".rstrip())
    counts = [sum(row.state == state for row in report.rows) for state in SIGNS]
    lines += ["", "{} passed, {} failed, {} absent".format(*counts)]
    return "\n".join(lines)


def _figures(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(_figure(name, value) for name, value in items)


def _figure(name: str, value: Any) -> str:
    stem, _, unit = name.rpartition("_")
    if unit in {"ms", "us", "kb", "mb", "pct"}:
        return f"{stem.replace('_', ' ')} {value} {'%' if unit == 'pct' else unit}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(map(str, value))
    return f"{name.replace('_', ' ')} {value}"
