"""Reads a list of devices from CSV: id, hardware, labels. Pure; every problem has its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_device

COLUMNS = ("id", "hardware", "labels")
MAX_DEVICES = 20_000
SHOWN = 20


class Line(NamedTuple):
    """One device, and the number of its line in the file."""

    number: int
    body: dict[str, Any]


class Problem(NamedTuple):
    """What is wrong: line and column as a person counts them, and a sentence."""

    line: int
    column: str
    message: str


def read(text: str, default_hardware: str, parse_labels: Any) -> Sequence[Line]:
    """Return the devices of a file.

    Args:
        text: CSV (RFC 4180) with a first line that names the columns; `id` must be among them.
        default_hardware: Of devices whose line says none.
        parse_labels: Makes labels of `key=value` texts.

    Raises:
        InvalidInputError: Code `bad_csv`; the message names line and column of each problem.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if "id" not in columns or not set(columns) <= set(COLUMNS):
            raise refused([Problem(1, ",".join(columns)[:80], "the columns are not known")])
        found: list[Line] = []
        problems: list[Problem] = []
        for row in reader:
            line = _line(reader.line_num, row, default_hardware, parse_labels)
            if isinstance(line, Problem):
                problems.append(line)
            else:
                found.append(line)
    except csv.Error as error:
        raise refused([Problem(reader.line_num + 1, "", str(error))]) from error
    if problems:
        raise refused(problems)
    if not 1 <= len(found) <= MAX_DEVICES:
        raise refused([Problem(1, "", f"there are {len(found)} devices, not 1 to {MAX_DEVICES}")])
    return found


def place(lines: Sequence[Line], problems: Iterable[Mapping[str, Any]]) -> InvalidInputError:
    """Return the error for what the server found wrong, by its places in the list."""
    return refused(
        [Problem(lines[p["place"]].number, p["field"], p["message"].rstrip(".")) for p in problems]
    )


def refused(problems: Sequence[Problem]) -> InvalidInputError:
    """Return one error that names every problem, or the first twenty."""
    told = "; ".join(
        f"line {problem.line}{f', column {problem.column}' if problem.column else ''}: "
        f"{problem.message}"
        for problem in problems[:SHOWN]
    )
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return InvalidInputError(
        f"Nothing is registered: {told}{more}.",
        code="bad_csv",
        hint="Columns are id, hardware and labels (key=value, with ; between); id must be there.",
    )


def _line(
    number: int, row: Mapping[str | None, Any], default_hardware: str, parse_labels: Any
) -> Line | Problem:
    if None in row or None in row.values():
        return Problem(number, "", "it has more or fewer cells than the first line")
    column = "id"
    try:
        body: dict[str, Any] = {"id": check_device(row["id"].strip())}
        body["hardware"] = (row.get("hardware") or "").strip() or default_hardware
        column = "labels"
        texts = [text.strip() for text in (row.get("labels") or "").split(";") if text.strip()]
        body["labels"] = parse_labels(texts)
    except InvalidInputError as error:
        return Problem(number, column, error.message.rstrip("."))
    return Line(number, body)
