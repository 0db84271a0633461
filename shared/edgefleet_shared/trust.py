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
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment, SlotAssignment
from edgefleet_shared.package import target_path

DIRECTOR_ROLE = "director"
DIRECTOR_PATHS = ["assignments/*"]
MAX_COUNTER_JUMP = 2**20


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
        InvalidInputError: Not an envelope or not an assignment (code `malformed`).
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
        if name != slot.model:
            raise InvalidInputError(
                f"Slot {name!r} names the model {slot.model!r}.", code="malformed"
            )
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
    catalog = (
        "sha256:" + target.hashes.get("sha256", ""),
        target.length,
        custom.get("release_counter"),
    )
    if catalog != (slot.manifest, slot.size, slot.release_counter):
        raise TrustError(
            f"The catalog and the assignment disagree about {slot.model} {slot.version}.",
            code="disagree",
        )
    if slot.release_counter < max(floor, int(custom.get("security_floor", 0))):
        raise TrustError(
            f"{slot.model} {slot.version} is below the publisher's security floor.",
            code="below_security_floor",
        )


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 UTC time.

    Raises:
        InvalidInputError: Not a time, or not in UTC.
    """
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError(f"{text[:40]!r} is not a time.", code="malformed") from error
    if value.utcoffset() is None or value.utcoffset():
        raise InvalidInputError(f"{text[:40]!r} is not in UTC.", code="malformed")
    return value


def format_time(value: datetime) -> str:
    """Return a UTC time as RFC 3339 with milliseconds and `Z`."""
    return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


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
