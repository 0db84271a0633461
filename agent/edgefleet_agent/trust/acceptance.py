"""Receive: decide whether a desired document changes what this device should run.

Order on disk: the accepted document, then the floors. Interrupted between the two, the same bytes
are verified again from disk at the next start, so that no assignment is half accepted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from tuf.api.metadata import TargetFile

from edgefleet_agent import durable
from edgefleet_agent.ports import Clock
from edgefleet_agent.trust.catalog import Catalog
from edgefleet_agent.trust.floors import Floors, FloorStore, ModelFloor
from edgefleet_shared import bundle, strict_json
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError
from edgefleet_shared.messages import DESIRED_MAX_BYTES, Assignment, Desired
from edgefleet_shared.package import target_path
from edgefleet_shared.trust import (
    DeviceIdentity,
    check_agreement,
    format_time,
    open_assignment,
    parse_time,
)

TIME_STEP = timedelta(minutes=10)


class Accepted(NamedTuple):
    """An assignment that both trust roots agree on, and where its blobs are served."""

    assignment: Assignment
    blobs: str


class _Opened(NamedTuple):
    desired: Desired
    envelope: bytes
    files: Mapping[str, bytes]


class Acceptance:
    """The device's judgement, with its memory.

    Args:
        state: The state folder; `trust/` and `desired/` lie in it.
        who: The device.
        root: The pinned first TUF root.
        clock: Seconds since the epoch.
    """

    def __init__(self, state: Path, who: DeviceIdentity, root: bytes, clock: Clock) -> None:
        self._who, self._root, self._clock = who, root, clock
        self._cache = state / "trust" / "metadata"
        self._file = durable.make_folder(state / "desired") / "accepted.json"
        durable.sweep(self._file.parent)
        self._floors = FloorStore(durable.make_folder(state / "trust"))

    @property
    def floor_lost(self) -> bool:
        """Whether an enrolled device has no readable floor: it serves on and refuses change."""
        return self._floors.current is None

    @property
    def counter(self) -> int:
        """Newest assignment counter that was accepted; 0 for none."""
        return self._floors.current.counter if self._floors.current else 0

    def security_floor(self, model: str) -> int:
        """Return the lowest release counter of a model that may still be activated."""
        floors = self._floors.current
        return floors.model(model).security_floor if floors else 0

    def now(self) -> datetime:
        """Return the device's time, never below the time floor."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        floors = self._floors.current
        return max(now, parse_time(floors.time)) if floors and floors.time else now

    def last(self) -> Accepted | None:
        """Return what was accepted last, from disk, or None.

        If power failed before the floors were raised, the document is judged again.

        Raises:
            EdgeFleetError: The file is damaged, or no longer holds.
        """
        payload = durable.read_bytes(self._file)
        if payload is None:
            return None
        opened = _open(payload)
        if opened.desired.counter <= self.counter:
            return Accepted(_unsealed(opened.envelope), opened.desired.blobs)
        return self._judge(payload, opened)

    def accept(self, payload: bytes) -> Accepted:
        """Judge a desired document. The same envelope again gives the same answer, and no write.

        Raises:
            TrustError: It does not hold; `code` says why. Nothing of it is kept but the catalog's
                floors, which are genuine whatever the assignment is.
            InvalidInputError: It cannot be read.
        """
        opened = _open(payload)
        if known := self._same(opened.envelope):
            return Accepted(known, opened.desired.blobs)
        return self._judge(payload, opened)

    def _same(self, envelope: bytes) -> Assignment | None:
        payload = durable.read_bytes(self._file)
        if payload is None:
            return None
        try:
            last = _open(payload)
        except EdgeFleetError:
            return None  # damaged on disk: judge what has come as if it were new
        if last.envelope != envelope or last.desired.counter > self.counter:
            return None
        return _unsealed(last.envelope)

    def _judge(self, payload: bytes, opened: _Opened) -> Accepted:
        floors = self._floors.current
        if floors is None:
            raise TrustError(
                "Both floor files are lost, so nothing new can be believed.",
                code="floor_lost",
                hint="Enrol the device anew; what runs goes on running.",
            )
        now = self.now()
        catalog = Catalog(self._cache, BundleFetcher(opened.files), self._root, now, floors)
        floors = self._raise(catalog.raise_floors(floors, []), now)
        assignment = open_assignment(
            opened.envelope, catalog.targets, self._who, floor=floors.counter, now=now
        )
        if assignment.counter != opened.desired.counter:
            raise TrustError("The document's counter is not its assignment's.", code="disagree")
        found = {
            name: catalog.find_release(slot.model, target_path(slot.model, slot.version))
            for name, slot in assignment.slots.items()
            if slot.mode == "run"
        }
        floors = self._raise(catalog.raise_floors(floors, list(found)), now)
        _agree(assignment, found, floors)
        durable.atomic_write(self._file, payload)
        self._floors.commit(_counted(floors, assignment))
        return Accepted(assignment, opened.desired.blobs)

    def _raise(self, floors: Floors, now: datetime) -> Floors:
        """Commit floors that a verified catalog raises; its expiry bounds the time floor."""
        last = parse_time(floors.time) if floors.time else None
        if last is None or now - last >= TIME_STEP:
            floors = msgspec.structs.replace(floors, time=format_time(now))
        self._floors.commit(floors)
        return floors


def _agree(assignment: Assignment, found: Mapping[str, TargetFile | None], floors: Floors) -> None:
    for name, target in found.items():
        check_agreement(assignment.slots[name], target, floors.model(name).security_floor)


def _counted(floors: Floors, assignment: Assignment) -> Floors:
    models = dict(floors.models)
    for name, slot in assignment.slots.items():
        floor = floors.model(name)
        newest = max(floor.release_counter, slot.release_counter)
        models[name] = ModelFloor(newest, floor.security_floor)
    return msgspec.structs.replace(floors, counter=assignment.counter, models=models)


def _open(payload: bytes) -> _Opened:
    desired = strict_json.decode(
        payload, Desired, max_bytes=DESIRED_MAX_BYTES, what="desired document"
    )
    try:
        envelope = base64.b64decode(desired.assignment, validate=True)
        packed = base64.b64decode(desired.bundle, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(
            f"The desired document is not base64: {error}.", code="malformed"
        ) from error
    return _Opened(desired, envelope, bundle.decode(packed))


def _unsealed(envelope: bytes) -> Assignment:
    """Read an envelope that was verified before it was written to our own disk."""
    fields = strict_json.decode(envelope, dict[str, object], max_bytes=len(envelope), what="copy")
    return strict_json.decode(
        base64.b64decode(str(fields["payload"])), Assignment, max_bytes=len(envelope), what="copy"
    )
