"""The rule by which a device installs: one pure function that says why not, or nothing.

Everything that it weighs is passed in as a value, the time too. Whoever asks has verified the
signatures; the rule says what must be true of what they signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from edgefleet_shared.messages import Assignment, SlotAssignment
from edgefleet_shared.package import EVERY_HARDWARE, target_path, unfit
from edgefleet_shared.times import parse_time

MAX_COUNTER_JUMP = 2**20


class DeviceIdentity(NamedTuple):
    """Who a device is: its fleet, its id and the digest of its public key (SPKI, DER)."""

    fleet: str
    device: str
    key: str


class Release(NamedTuple):
    """A version as the catalog has it, at a path that only its model's publisher can sign."""

    path: str
    digest: str
    length: int
    hardware: frozenset[str]
    release_counter: int
    security_floor: int


class Case(NamedTuple):
    """What one slot of one assignment is judged by.

    Attributes:
        me: The device that asks.
        hardware: Its own hardware id, from its own configuration.
        now: Its time, never below its time floor.
        floor: Newest assignment counter that it has accepted.
        catalog: '' if the catalog was refreshed and is above its floors, else the code why not.
        assignment: What the director signed; None: no director whom targets name signed it.
        slot: The slot; None for an assignment without slots.
        release: The catalog's entry for it; None: there is none that may be believed.
        security_floor: The model's lowest release counter that may run, as far as is known.
        fitting: How many variants of the manifest fit this device; 1 while it has not come, and
            asked again once it has; 1 too where golden vectors tell several apart.
    """

    me: DeviceIdentity
    hardware: str
    now: datetime
    floor: int
    catalog: str
    assignment: Assignment | None
    slot: SlotAssignment | None
    release: Release | None
    security_floor: int
    fitting: int = 1


def why_not(case: Case) -> str:
    """Return '' if the slot may be installed, else the code of the first thing against it."""
    return next(_objections(case), "")


def why_not_serve(release_counter: int, security_floor: int, fitting: int = 1) -> str:
    """Return '' if a version that was accepted may serve, now or again, else the code why not."""
    return "below_security_floor" if release_counter < security_floor else unfit(fitting)


def _objections(case: Case) -> Iterator[str]:
    order, slot, me = case.assignment, case.slot, case.me
    if case.catalog:
        yield case.catalog
    if order is None:
        yield "signature"
        return
    wrongs = {
        "wrong_fleet": order.fleet != me.fleet,
        "wrong_device": order.device != me.device,
        "wrong_key": order.key != me.key,
        "replayed": order.counter <= case.floor,
        "fast_forward": order.counter - case.floor > MAX_COUNTER_JUMP,
        "expired": parse_time(order.expires) <= case.now,
    }
    yield from (code for code, wrong in wrongs.items() if wrong)
    if slot is not None and slot.mode == "run":  # to serve nothing needs no package
        yield from _against_release(case, slot)


def _against_release(case: Case, slot: SlotAssignment) -> Iterator[str]:
    release = case.release
    if release is None or release.path != target_path(slot.model, slot.version):
        yield "not_in_catalog"
        return
    signed = (release.digest, release.length, release.release_counter)
    if signed != (slot.manifest, slot.size, slot.release_counter):
        yield "disagree"
    if not release.hardware & {case.hardware, EVERY_HARDWARE}:
        yield "wrong_hardware"
    floor = max(case.security_floor, release.security_floor)
    if code := why_not_serve(slot.release_counter, floor, case.fitting):
        yield code
