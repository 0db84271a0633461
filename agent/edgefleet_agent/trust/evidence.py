"""What a desired document proves: verified here, weighed by `edgefleet_shared.install`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from edgefleet_agent.trust.catalog import Catalog
from edgefleet_agent.trust.floors import Floors
from edgefleet_shared import bundle, strict_json
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.install import Case, DeviceIdentity, Release
from edgefleet_shared.messages import DESIRED_MAX_BYTES, Assignment, Desired, SlotAssignment
from edgefleet_shared.package import target_path
from edgefleet_shared.trust import read_release, unseal_assignment

MAX_URL = 2048
"""Characters of the blobs' address, which nobody has signed and the journal keeps."""


class Opened(NamedTuple):
    """A desired document, taken apart and not believed: its envelope and the bundle's files."""

    desired: Desired
    envelope: bytes
    files: Mapping[str, bytes]


class Evidence(NamedTuple):
    """What was verified of a document, and the first thing that was not.

    Attributes:
        floors: The device's, raised to what was verified; unchanged if the catalog was not.
        expires: When what was verified expires; None if the catalog was not.
        assignment: What the director signed, or None.
        releases: The catalog's entry for each slot that is to run something.
        problem: Why something is missing here, or None.
    """

    floors: Floors
    expires: datetime | None
    assignment: Assignment | None
    releases: Mapping[str, Release | None]
    problem: TrustError | None


def open_document(payload: bytes) -> Opened:
    """Take a desired document apart.

    Raises:
        InvalidInputError: It cannot be read.
    """
    desired = strict_json.decode(
        payload, Desired, max_bytes=DESIRED_MAX_BYTES, what="desired document"
    )
    if len(desired.blobs) > MAX_URL:
        raise InvalidInputError("The address of the blobs is too long.", code="malformed")
    try:
        envelope = base64.b64decode(desired.assignment, validate=True)
        packed = base64.b64decode(desired.bundle, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(
            f"The desired document is not base64: {error}.", code="malformed"
        ) from error
    return Opened(desired, envelope, bundle.decode(packed))


def gather(opened: Opened, cache: Path, root: bytes, now: datetime, floors: Floors) -> Evidence:
    """Verify everything of a document that can be verified.

    Args:
        opened: The document.
        cache: Folder of verified TUF metadata; may be lost at any time.
        root: The pinned first root.
        now: The device's time, never below its floor.
        floors: The device's.

    Raises:
        InvalidInputError: The assignment is signed, and cannot be read.
        OSError: The cache cannot be written.
    """
    found: dict[str, Release | None] = {}
    expires, assignment = None, None
    try:
        catalog = Catalog(cache, BundleFetcher(opened.files), root, now, floors)
        floors, expires = catalog.raise_floors(floors, []), catalog.expires
        assignment = _unseal(opened, catalog)
        for slot in assignment.slots.values():
            if slot.mode == "run":
                path = target_path(slot.model, slot.version)
                target = catalog.find_release(slot.model, path)
                # Its publisher's floors hold, whatever is then said of this version.
                floors = catalog.raise_floors(floors, [slot.model])
                found[slot.model] = read_release(target) if target else None
    except TrustError as error:
        return Evidence(floors, expires, assignment, found, error)
    return Evidence(floors, expires, assignment, found, None)


def cases(
    evidence: Evidence, me: DeviceIdentity, hardware: str, now: datetime, floor: int
) -> list[Case]:
    """Return what has to be judged: one case for each slot, and one for none at all."""
    order, problem = evidence.assignment, evidence.problem
    slots: list[SlotAssignment | None] = [*order.slots.values()] if order else []
    return [
        Case(
            me=me,
            hardware=hardware,
            now=now,
            floor=floor,
            catalog=problem.code if problem else "",
            assignment=order,
            slot=slot,
            release=evidence.releases.get(slot.model) if slot else None,
            security_floor=evidence.floors.model(slot.model).security_floor if slot else 0,
        )
        for slot in slots or [None]
    ]


def _unseal(opened: Opened, catalog: Catalog) -> Assignment:
    assignment = unseal_assignment(opened.envelope, catalog.targets)
    if assignment.counter != opened.desired.counter:
        raise TrustError("The document's counter is not its assignment's.", code="disagree")
    return assignment
