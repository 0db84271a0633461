"""Measure the variants that fit, remember what came of it, and say why one was taken.

What is remembered is a derived cache: bound to the package's digest and to the machine's
fingerprint, thrown away when either is another or when it cannot be read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_agent import durable, variants
from edgefleet_agent.ipc.control import Outcome
from edgefleet_agent.variants import Measured
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import Variant

MAX_BYTES = 1024 * 1024
KEPT = 64
ONLY_ONE = "It is the only variant that can run here."
PASSING = frozenset({"load_timeout", "crashed", "out_of_memory"})
"""Failures that a busy machine can cause: what they decided is not remembered."""


class Choice(msgspec.Struct, frozen=True):
    """The variants of one package in the order in which to take them.

    `order` holds the ids of those that passed; `measured` every candidate's numbers, `refused` why
    each of the others was none. `reason` is one line for people.
    """

    digest: str
    order: list[str]
    reason: str
    measured: list[Measured] = []
    refused: dict[str, str] = {}


class _Book(msgspec.Struct, frozen=True):
    fingerprint: str
    format: Literal[1] = 1
    choices: list[Choice] = []


class ChoiceBook:
    """What was measured on this machine, on disk; safe in any thread.

    Args:
        path: `<state_dir>/variants.json`.
        fingerprint: Of the machine as it is now.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._book = _read(path, fingerprint)

    def find(self, digest: str) -> Choice | None:
        """Return what was chosen for a package on this very machine."""
        return next((c for c in self._book.choices if c.digest == digest), None)

    def keep(self, choice: Choice) -> None:
        """Remember a choice, durably.

        Raises:
            OSError: It cannot be written; it is measured again next time.
        """
        with self._lock:
            others = [c for c in self._book.choices if c.digest != choice.digest]
            kept = [*others, choice][-KEPT:]
            book = msgspec.structs.replace(self._book, choices=kept)
            durable.atomic_write(self._path, strict_json.encode(book))
            self._book = book


def read_choices(path: Path) -> list[Choice]:
    """Return what `path` holds, for people to look at; nothing if it cannot be read."""
    data = durable.read_bytes(path)
    return [] if data is None else _decoded(data).choices


def _read(path: Path, fingerprint: str) -> _Book:
    data = durable.read_bytes(path)
    book = _Book("") if data is None else _decoded(data)
    return book if book.fingerprint == fingerprint else _Book(fingerprint)


def _decoded(data: bytes) -> _Book:
    try:
        return strict_json.decode(data, _Book, max_bytes=MAX_BYTES, what="variants.json")
    except InvalidInputError:
        return _Book("")  # nothing is lost that cannot be measured again


def choose(
    digest: str,
    found: Sequence[Variant],
    refused: Mapping[str, str],
    book: ChoiceBook,
    prove: Callable[[Variant], Outcome],
) -> Choice:
    """Measure each candidate in a throw-away process and decide; one alone is not measured.

    Args:
        digest: The package's manifest.
        found: The candidates, in the manifest's order, their files on disk.
        refused: Why each of the other variants is no candidate.
        book: Where to look first, and to remember.
        prove: Proves and measures one variant; a negative outcome is an answer like any other.

    Raises:
        OSError: The choice cannot be written down.
    """
    if len(found) == 1:
        return Choice(digest, [found[0].id], ONLY_ONE, refused=dict(refused))
    known = book.find(digest)
    if known is not None and {m.variant for m in known.measured} == {v.id for v in found}:
        return known
    measured = [_measured(variant, prove(variant)) for variant in found]
    order = variants.rank(measured)
    choice = Choice(
        digest,
        [one.variant for one in order],
        variants.reason(order, measured),
        measured,
        dict(refused),
    )
    if order and not any(one.code in PASSING for one in measured):
        book.keep(choice)
    return choice


def _measured(variant: Variant, outcome: Outcome) -> Measured:
    return Measured(
        variant=variant.id,
        accelerator=variant.accelerator,
        code="" if outcome.ok else outcome.code or "load_failed",
        message=outcome.message[:500],
        median_us=outcome.median_us,
        memory_kb=outcome.memory_kb,
        load_ms=outcome.load_ms,
        accelerated_pct=outcome.accelerated_pct,
    )
