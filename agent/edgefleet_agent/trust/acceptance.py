"""Receive: decide whether a desired document changes what this device should run.

Order on disk: the accepted document, then the floors. Interrupted between the two, the same bytes
are verified again from disk at the next start, so that no assignment is half accepted.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from tuf.api.metadata import Targets

from edgefleet_agent import durable
from edgefleet_agent.ports import Clock
from edgefleet_agent.trust.catalog import Catalog, cached_expiry
from edgefleet_agent.trust.evidence import Evidence, Opened, cases, gather, open_document
from edgefleet_agent.trust.floors import Floors, FloorStore, ModelFloor
from edgefleet_shared import bundle, strict_json
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import EdgeFleetError, TrustError
from edgefleet_shared.install import DeviceIdentity, why_not
from edgefleet_shared.messages import Assignment
from edgefleet_shared.trust import explain, format_time, parse_time

TIME_STEP = timedelta(minutes=10)


class Accepted(NamedTuple):
    """An assignment that both trust roots agree on, and where its blobs are served.

    `downgrades` names the slots that go below a release that was accepted before: allowed down to
    the security floor, and told.
    """

    assignment: Assignment
    blobs: str
    downgrades: tuple[str, ...] = ()


class Acceptance:
    """The device's judgement, with its memory.

    Args:
        state: The state folder; `trust/` and `desired/` lie in it.
        who: The device.
        hardware: Its hardware id, which the catalog must name.
        root: The pinned first TUF root.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, state: Path, who: DeviceIdentity, hardware: str, root: bytes, clock: Clock
    ) -> None:
        self._who, self._hardware, self._root, self._clock = who, hardware, root, clock
        self._cache = state / "trust" / "metadata"
        self._file = durable.make_folder(state / "desired") / "accepted.json"
        durable.sweep(self._file.parent)
        self._floors = FloorStore(durable.make_folder(state / "trust"))
        self._expires = cached_expiry(self._cache)

    @property
    def stale(self) -> bool:
        """Whether the newest catalog that was verified has expired: what runs goes on running."""
        return self._expires is not None and self._expires <= self.now()

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
        opened = open_document(payload)
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
        opened = open_document(payload)
        if known := self._same(opened.envelope):
            return Accepted(known, opened.desired.blobs)
        return self._judge(payload, opened)

    def director(self, packed: bytes) -> Targets:
        """Return the verified targets of a bundle, which say whose word is the director's.

        Raises:
            TrustError: It does not verify, is below a floor, or the floors are lost.
        """
        floors = self._floors.current
        if floors is None:
            raise _floors_lost()
        now = self.now()
        fetcher = BundleFetcher(bundle.decode(packed))
        catalog = Catalog(self._cache, fetcher, self._root, now, floors)
        raised = catalog.raise_floors(floors, [])
        self._raise(Evidence(raised, catalog.expires, None, {}, None), now)
        return catalog.targets

    def rekey(self, who: DeviceIdentity) -> None:
        """Judge as this device from now on: it has another key."""
        self._who = who

    def _same(self, envelope: bytes) -> Assignment | None:
        payload = durable.read_bytes(self._file)
        if payload is None:
            return None
        try:
            last = open_document(payload)
        except EdgeFleetError:
            return None  # damaged on disk: judge what has come as if it were new
        if last.envelope != envelope or last.desired.counter > self.counter:
            return None
        return _unsealed(last.envelope)

    def _judge(self, payload: bytes, opened: Opened) -> Accepted:
        floors = self._floors.current
        if floors is None:
            raise _floors_lost()
        now = self.now()
        evidence = gather(opened, self._cache, self._root, now, floors)
        # Genuine whatever the assignment is, so they hold even if it is refused.
        raised = self._raise(evidence, now)
        for case in cases(evidence, self._who, self._hardware, now, floors.counter):
            if code := why_not(case):
                raise evidence.problem or explain(case, code)
        assert evidence.assignment is not None
        durable.atomic_write(self._file, payload)
        self._floors.commit(_counted(raised, evidence.assignment))
        lower = _downgrades(floors, evidence.assignment)
        return Accepted(evidence.assignment, opened.desired.blobs, lower)

    def _raise(self, evidence: Evidence, now: datetime) -> Floors:
        """Commit floors that a verified catalog raises; its expiry bounds the time floor."""
        floors = evidence.floors
        if evidence.expires is not None:
            self._expires = evidence.expires
            last = parse_time(floors.time) if floors.time else None
            if last is None or now - last >= TIME_STEP:
                time = format_time(min(now, evidence.expires))
                floors = msgspec.structs.replace(floors, time=time)
        self._floors.commit(floors)
        return floors


def _floors_lost() -> TrustError:
    return TrustError(
        "Both floor files are lost, so nothing new can be believed.",
        code="floor_lost",
        hint="Enrol the device anew; what runs goes on running.",
    )


def _downgrades(floors: Floors, assignment: Assignment) -> tuple[str, ...]:
    return tuple(
        name
        for name, slot in assignment.slots.items()
        if slot.mode == "run" and slot.release_counter < floors.model(name).release_counter
    )


def _counted(floors: Floors, assignment: Assignment) -> Floors:
    models = dict(floors.models)
    for name, slot in assignment.slots.items():
        if slot.mode == "stop":
            continue  # no publisher has vouched for its name or counter
        floor = floors.model(name)
        newest = max(floor.release_counter, slot.release_counter)
        models[name] = ModelFloor(newest, floor.security_floor)
    return msgspec.structs.replace(floors, counter=assignment.counter, models=models)


def _unsealed(envelope: bytes) -> Assignment:
    """Read an envelope that was verified before it was written to our own disk."""
    fields = strict_json.decode(envelope, dict[str, object], max_bytes=len(envelope), what="copy")
    return strict_json.decode(
        base64.b64decode(str(fields["payload"])), Assignment, max_bytes=len(envelope), what="copy"
    )
