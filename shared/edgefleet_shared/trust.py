"""Two must agree: the rules by which a device believes an assignment. Pure; time is passed in.

The catalog (TUF) says what may run, the assignment (DSSE by the director) what this device should
run now. The director's public key is itself a delegation in the offline-signed targets role, so its
rotation and revocation come from TUF.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TargetFile, Targets

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import check_digest, check_name, check_version
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment, SlotAssignment
from edgefleet_shared.package import target_path
from edgefleet_shared.times import format_time, parse_time

__all__ = [
    "DIRECTOR_PATHS",
    "DIRECTOR_ROLE",
    "LIFE_DAYS",
    "MAX_COUNTER_JUMP",
    "DeviceIdentity",
    "check_agreement",
    "format_time",
    "open_assignment",
    "parse_time",
]

DIRECTOR_ROLE = "director"
DIRECTOR_PATHS = ["assignments/*"]
MAX_COUNTER_JUMP = 2**20
LIFE_DAYS = {"root": 365, "targets": 180, "publisher": 90, "snapshot": 7, "timestamp": 1}
"""Days that a role's metadata holds after it was signed; `publisher` for every family's."""


class DeviceIdentity(NamedTuple):
    """Who a device is: its fleet, its id and the digest of its public key (SPKI, DER)."""

    fleet: str
    device: str
    key: str


def open_assignment(
    data: bytes, targets: Targets, me: DeviceIdentity, *, floor: int, now: datetime
) -> Assignment:
    """Return the assignment in a DSSE envelope, or say why it must be refused.

    Args:
        data: The envelope's JSON.
        targets: The verified top-level targets role, which delegates to the director.
        me: The device that asks.
        floor: Newest counter that this device has accepted; the same counter again is refused by
            code `replayed`, so the caller must first compare bytes if it wants idempotence.
        now: The device's time, never below its time floor.

    Raises:
        InvalidInputError: Not an envelope or not an assignment (code `malformed`), or a slot that
            cannot be (`malformed`, `invalid_name`, `invalid_version`, `invalid_digest`).
        TrustError: code `payload_type`, `signature`, `wrong_fleet`, `wrong_device`, `wrong_key`,
            `replayed`, `fast_forward` or `expired`.
    """
    envelope = dsse.read(data, ASSIGNMENT_TYPE)
    try:
        targets.verify_delegate(DIRECTOR_ROLE, envelope.pae(), envelope.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            "The assignment is not signed by the fleet's director.", code="signature"
        ) from error
    assignment = strict_json.decode(
        envelope.payload, Assignment, max_bytes=dsse.ENVELOPE_MAX_BYTES, what="assignment"
    )
    _check_addressee(assignment, me)
    _check_freshness(assignment, floor, now)
    for name, slot in assignment.slots.items():
        _check_slot(name, slot)
    return assignment


def check_agreement(slot: SlotAssignment, target: TargetFile | None, floor: int) -> None:
    """Check that the catalog allows what the assignment asks for.

    Args:
        slot: What the director wants to run.
        target: The catalog's entry for the slot's manifest, found through delegations; or None.
        floor: The family's security floor that this device has seen.

    Raises:
        TrustError: code `not_in_catalog`, `disagree` or `below_security_floor`.
    """
    path = target_path(slot.model, slot.version)
    if target is None or target.path != path:
        raise TrustError(
            f"No publisher has signed {slot.model} {slot.version}.", code="not_in_catalog"
        )
    custom = target.custom or {}
    counters = (custom.get("release_counter"), custom.get("security_floor", 0))
    catalog = ("sha256:" + target.hashes.get("sha256", ""), target.length, counters[0])
    if catalog != (slot.manifest, slot.size, slot.release_counter) or not all(
        type(counter) is int
        for counter in counters  # 1 == 1.0 == True, but not in every language
    ):
        raise TrustError(
            f"The catalog and the assignment disagree about {slot.model} {slot.version}.",
            code="disagree",
        )
    if slot.release_counter < max(floor, custom.get("security_floor", 0)):
        raise TrustError(
            f"{slot.model} {slot.version} is below the publisher's security floor.",
            code="below_security_floor",
        )


def _check_slot(name: str, slot: SlotAssignment) -> None:
    """Check what will be part of a path; nobody but the catalog can check the rest."""
    if name != slot.model:
        raise InvalidInputError(f"Slot {name[:80]!r} names another model.", code="malformed")
    check_name(name, "slot")
    if slot.mode == "run":
        check_version(slot.version)
        check_digest(slot.manifest)


def _check_addressee(assignment: Assignment, me: DeviceIdentity) -> None:
    for code, got, mine in (
        ("wrong_fleet", assignment.fleet, me.fleet),
        ("wrong_device", assignment.device, me.device),
        ("wrong_key", assignment.key, me.key),
    ):
        if got != mine:
            raise TrustError(f"The assignment is for {got[:80]!r}; this is {mine!r}.", code=code)


def _check_freshness(assignment: Assignment, floor: int, now: datetime) -> None:
    if assignment.counter <= floor:
        raise TrustError(
            f"The assignment's counter is {assignment.counter}; {floor} was already accepted.",
            code="replayed",
        )
    if assignment.counter - floor > MAX_COUNTER_JUMP:
        raise TrustError(
            f"The assignment's counter jumps from {floor} to {assignment.counter}.",
            code="fast_forward",
        )
    if parse_time(assignment.expires) <= now:
        raise TrustError(f"The assignment expired at {assignment.expires}.", code="expired")
