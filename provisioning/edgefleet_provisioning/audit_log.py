"""Checks a log of events against itself and against the statements that were signed about it. Pure.

The chain finds what was changed by somebody who did not compute it anew; the signed statements find
who did, up to the newest statement; a statement that the operator kept finds a server whose owner
signed a new past.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Targets

from edgefleet_shared import dsse
from edgefleet_shared.audit import (
    BEGINNING,
    HEAD_TYPE,
    Entry,
    Head,
    head_digest,
    read_head,
    row_hash,
)
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.trust import AUDIT_ROLE

MAX_SHIFT = 1000
"""Removed rows that are recognised as such where the rest was numbered anew."""


class Row(NamedTuple):
    """A row of the log, and the hash that stands beside it."""

    entry: Entry
    hash: str

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Row:
        """Return an event of the API as a row.

        Raises:
            InvalidInputError: It is none (code `malformed`).
        """
        try:
            entry = Entry(**{name: event[name] for name in Entry._fields})
            return cls(entry._replace(id=int(entry.id)), str(event["hash"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"An event is not as events are: {error}.",
                code="malformed",
                hint="Is the server older than this command?",
            ) from error


class Finding(NamedTuple):
    """The first thing that is wrong.

    Attributes:
        kind: removed, altered, inserted, reordered, truncated, rewritten, or statement.
        row: The row's id; of truncated the first that is missing; 0 for a statement.
        message: One sentence.
    """

    kind: str
    row: int
    message: str


class Statement(NamedTuple):
    """A signed statement, as it came.

    Attributes:
        head: What it says.
        digest: How the next one names it.
        signed: Whether a key signed it that the fleet's owners name now.
    """

    head: Head
    digest: str
    signed: bool


def read_statement(envelope: Mapping[str, Any], targets: Targets) -> Statement:
    """Return what an envelope says, and whether the fleet's audit key signed it.

    Raises:
        InvalidInputError: It is no statement.
    """
    try:
        opened = dsse.read(json.dumps(envelope).encode(), HEAD_TYPE)
    except TrustError as error:
        raise InvalidInputError(
            f"This is no statement about a log: {error.message}", code="malformed"
        ) from error
    try:
        targets.verify_delegate(AUDIT_ROLE, opened.pae(), opened.signatures)
        signed = True
    except (RepositoryError, ValueError):
        signed = False
    return Statement(read_head(opened.payload), head_digest(opened.payload), signed)


def check_statements(
    statements: Sequence[Statement], fleet: str, kept: Statement | None
) -> Finding | None:
    """Return what is wrong with the server's statements, oldest first.

    Each names the one before, so a signature on the newest vouches for all; keys that have been
    replaced need not be known.

    Args:
        statements: All of them.
        fleet: The fleet's name.
        kept: One that the operator kept; it must be among them.
    """
    previous = BEGINNING
    last, count, hash_ = 0, 0, BEGINNING
    for number, statement in enumerate(statements, start=1):
        head = statement.head
        if head.fleet != fleet:
            return _about(head, f"is about the fleet {head.fleet!r}")
        if head.number != number or head.previous != previous:
            return _about(head, "does not follow the one before: one was removed or replaced")
        if head.last < last or head.count < count or head.count - count > head.last - last:
            return _about(head, "counts fewer rows than the one before, or more than there can be")
        if head.last == last and head.hash != hash_:
            return _about(head, "contradicts the one before about the same row")
        previous, last, count, hash_ = statement.digest, head.last, head.count, head.hash
    if statements and not statements[-1].signed:
        return _about(statements[-1].head, "is not signed by the fleet's audit key")
    if kept and kept.digest not in {statement.digest for statement in statements}:
        return Finding(
            "rewritten",
            kept.head.last,
            f"The server no longer has statement {kept.head.number} of {kept.head.time}, which you"
            " kept: its past was written anew.",
        )
    return None


class LogCheck:
    """Follows a log row by row.

    Args:
        statements: What was signed about it.
        kept: Where to begin: the row that it names is believed, what is before is not looked at.
    """

    def __init__(self, statements: Iterable[Statement], kept: Statement | None = None) -> None:
        self._heads = {statement.head.last: statement.head for statement in statements}
        self._last, self._hash = (kept.head.last - 1, "") if kept else (0, BEGINNING)
        self._kept = kept.head if kept else None
        self.rows = 0

    @property
    def last(self) -> int:
        """The id of the newest row that was looked at; the next to ask for is beyond it."""
        return self._last

    def follow(self, rows: Sequence[Row]) -> Finding | None:
        """Check the next rows; return the first thing that is wrong, or None.

        After a finding the same row may be given again, with more rows behind it: what follows
        tells what happened.
        """
        for place, row in enumerate(rows):
            finding = self._begin(row, self._kept) if self._kept else self._step(rows, place)
            if finding:
                return finding
            self._last, self._hash = row.entry.id, row.hash
            self._kept = None
            self.rows += 1
        return None

    def finish(self) -> Finding | None:
        """Return whether rows are missing that a statement speaks of."""
        missing = [head for last, head in self._heads.items() if last > self._last]
        if self._kept and not missing:
            missing = [self._kept]
        if not missing:
            return None
        head = missing[0]
        return Finding(
            "truncated",
            self._last + 1,
            f"The log ends at row {self._last}, and statement {head.number} of {head.time} was"
            f" signed when row {head.last} was there.",
        )

    def _begin(self, row: Row, kept: Head) -> Finding | None:
        if row.entry.id != kept.last:
            return Finding("removed", kept.last, f"Row {kept.last} is gone, which you kept.")
        return self._compare(row, kept)

    def _step(self, rows: Sequence[Row], place: int) -> Finding | None:
        row = rows[place]
        if row.entry.id <= self._last or row.hash != _hash(self._hash, row.entry):
            return self._explain(row, rows[place + 1 :])
        head = self._heads.get(row.entry.id)
        return self._compare(row, head) if head else None

    def _compare(self, row: Row, head: Head) -> Finding | None:
        if row.hash == head.hash:
            return None
        return Finding(
            "rewritten",
            row.entry.id,
            f"Row {row.entry.id} is not what statement {head.number} of {head.time} was signed"
            " about: the log was computed anew from some row up to here.",
        )

    def _explain(self, row: Row, following: Sequence[Row]) -> Finding:
        here = row.entry.id
        if here > self._last + 1:
            gap = f"{self._last + 1} to {here - 1}" if here - self._last > 2 else str(here - 1)
            return Finding("removed", self._last + 1, f"Before row {here} is missing: row {gap}.")
        for place, other in enumerate(following):
            if other.hash == _hash(self._hash, other.entry._replace(id=here)):
                there = other.entry.id
                before = following[place - 1] if place else other
                if row.hash == _hash(before.hash, row.entry._replace(id=there)):
                    return Finding("reordered", here, f"Rows {here} and {there} changed places.")
                return Finding("inserted", here, f"Row {here} was put in: row {there} stood here.")
        if following and (lost := _moved_up(row, following[0])):
            return Finding("removed", here, f"{lost} rows are missing before row {here}.")
        return Finding("altered", here, f"Row {here} is not what was written: {row.entry.message}")


def _moved_up(row: Row, following: Row) -> int:
    """Return by how many numbers two rows were moved up, if that makes them fit; else 0."""
    for lost in range(1, MAX_SHIFT):
        moved = following.entry._replace(id=following.entry.id + lost)
        if following.hash == _hash(row.hash, moved):
            return lost
    return 0


def _hash(previous: str, entry: Entry) -> str | None:
    try:
        return row_hash(previous, entry)
    except ValueError:  # a number or text that was never hashed
        return None


def _about(head: Head, what: str) -> Finding:
    return Finding("statement", 0, f"Statement {head.number} of {head.time} {what}.")
