"""`edgefleet-agent journal`: where every slot stands on disk, agentd running or not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from edgefleet_agent.config import Config
from edgefleet_agent.inspection.output import say
from edgefleet_agent.journal import Document, SlotRecord, VersionRef, read_document
from edgefleet_shared.errors import InvalidInputError


def register(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("slot", nargs="?", default="", help="one slot alone")


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the journal.

    Raises:
        InvalidInputError: It is damaged, or has no such slot.
    """
    document = read_document(config.state / "journal.json")
    slots = document.slots
    if options.slot:
        if options.slot not in slots:
            raise InvalidInputError(
                f"The journal has no slot {options.slot!r}.",
                code="unknown_slot",
                hint=f"It has {', '.join(sorted(slots)) or 'none'}.",
            )
        slots = {options.slot: slots[options.slot]}
    say(_shown(document, slots), _lines(document, slots), as_json=options.json)
    return 0


def _shown(document: Document, slots: dict[str, SlotRecord]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(document, slots=slots))
    return found


def _lines(document: Document, slots: dict[str, SlotRecord]) -> Iterator[str]:
    yield f"journal, written {document.seq} times; slots: {len(document.slots)}"
    for name, record in sorted(slots.items()):
        yield f"{name}"
        yield f"  active    {_version(record.active)}"
        yield f"  previous  {_version(record.previous)}"
        if (deployment := record.deployment) is not None:
            target = deployment.target
            what = target.version if target.mode == "run" else "nothing"
            line = f"  {deployment.state.value} since {deployment.since}: deployment "
            yield f"{line}{deployment.id} of {what}, attempt {deployment.attempt}"
            if deployment.reason or deployment.detail:
                why = ": ".join(filter(None, (deployment.reason, deployment.detail)))
                yield f"    {why}"
            if deployment.verdict:
                yield f"    probation: {deployment.verdict}"
        for digest, failures in record.failures.items():
            yield f"  failed to prove: {digest} ({msgspec.to_builtins(failures)})"
        if record.quarantined:
            yield f"  rolled back, not tried again: {', '.join(record.quarantined)}"
        if record.receipt is not None:
            yield "  a swap receipt waits to be stored"


def _version(version: VersionRef | None) -> str:
    if version is None:
        return "nothing"
    return f"{version.version} ({version.variant}) {version.digest}"
