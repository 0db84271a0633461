"""Two must agree: the rules by which a device believes an assignment. Pure; time is passed in.

The catalog (TUF) says what may run, the assignment (DSSE by the director) what this device should
run now. The director's public key is itself a delegation in the offline-signed targets role, so its
rotation and revocation come from TUF.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TargetFile, Targets

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import check_digest, check_name, check_version
from edgefleet_shared.install import MAX_COUNTER_JUMP, Case, DeviceIdentity, Release, why_not
from edgefleet_shared.messages import ASSIGNMENT_TYPE, MAX_SLOTS, Assignment, SlotAssignment
from edgefleet_shared.times import format_time, parse_time

__all__ = [
    "AUDIT_PATHS",
    "AUDIT_ROLE",
    "DIRECTOR_PATHS",
    "DIRECTOR_ROLE",
    "LIFE_DAYS",
    "MAX_COUNTER_JUMP",
    "SERVER_ROLES",
    "DeviceIdentity",
    "explain",
    "format_time",
    "open_assignment",
    "parse_time",
    "read_release",
    "unseal_assignment",
]

DIRECTOR_ROLE = "director"
DIRECTOR_PATHS = ["assignments/*"]
AUDIT_ROLE = "audit"
"""Signs statements about the log of changes (`edgefleet_shared.audit`); may be missing."""
AUDIT_PATHS = ["audit/*"]
SERVER_ROLES = frozenset({DIRECTOR_ROLE, AUDIT_ROLE})
"""Delegations that have a key and no file: the server signs envelopes with them."""
MAX_TEXT = 128
"""Characters of what an assignment calls a deployment, rollout or version; it is kept and told."""
MAX_POLICY = 10**9
LIFE_DAYS = {"root": 365, "targets": 180, "publisher": 90, "snapshot": 7, "timestamp": 1}
"""Days that a role's metadata holds after it was signed; `publisher` for every family's."""


def open_assignment(
    data: bytes, targets: Targets, me: DeviceIdentity, *, floor: int, now: datetime
) -> Assignment:
    """Return the assignment in a DSSE envelope if it is this device's, new and not expired.

    Args:
        data: The envelope's JSON.
        targets: The verified top-level targets role, which delegates to the director.
        me: The device that asks.
        floor: Newest counter that this device has accepted; the same counter again is refused by
            code `replayed`, so the caller must first compare bytes if it wants idempotence.
        now: The device's time, never below its time floor.

    Raises:
        InvalidInputError: As `unseal_assignment`.
        TrustError: As `unseal_assignment`, or by a code of `install.why_not`.
    """
    assignment = unseal_assignment(data, targets)
    case = Case(me, "", now, floor, "", assignment, None, None, 0)
    if code := why_not(case):
        raise explain(case, code)
    return assignment


def unseal_assignment(data: bytes, targets: Targets) -> Assignment:
    """Return what the director signed; whether it may be obeyed is for `install.why_not` to say.

    Raises:
        InvalidInputError: Not an envelope or not an assignment (code `malformed`), or a slot that
            cannot be (`malformed`, `invalid_name`, `invalid_version`, `invalid_digest`).
        TrustError: code `payload_type` or `signature`.
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
    parse_time(assignment.expires)
    if len(assignment.slots) > MAX_SLOTS:
        raise InvalidInputError(
            f"An assignment names {len(assignment.slots)} slots and may name {MAX_SLOTS}.",
            code="malformed",
        )
    for name, slot in assignment.slots.items():
        _check_slot(name, slot)
    return assignment


def read_release(target: TargetFile) -> Release:
    """Return what the catalog's entry for a manifest says.

    Raises:
        TrustError: It does not say what a device must compare (code `disagree`).
    """
    custom: dict[str, object] = target.custom if isinstance(target.custom, dict) else {}
    counter, floor = custom.get("release_counter"), custom.get("security_floor", 0)
    hardware = custom.get("hardware")
    if (
        type(counter) is not int  # 1 == 1.0 == True, but not in every language
        or type(floor) is not int
        or not isinstance(hardware, list)
        or not all(isinstance(name, str) for name in hardware)
    ):
        raise TrustError(
            f"The catalog does not say counters and hardware of {target.path}.", code="disagree"
        )
    digest = "sha256:" + target.hashes.get("sha256", "")
    return Release(target.path, digest, target.length, frozenset(hardware), counter, floor)


def explain(case: Case, code: str) -> TrustError:
    """Return the error that says why `install.why_not` answered by that code."""
    order, slot, me = case.assignment, case.slot, case.me
    what = f"{slot.model} {slot.version}" if slot else "the assignment"
    sentences = {"signature": "The assignment is not signed by the fleet's director."}
    if order is not None:
        sentences |= {
            "wrong_fleet": f"The assignment is for fleet {order.fleet[:80]!r}, not {me.fleet!r}.",
            "wrong_device": f"The assignment is for {order.device[:80]!r}; this is {me.device!r}.",
            "wrong_key": "The assignment is for another key of this device.",
            "replayed": f"The assignment's counter is {order.counter}; {case.floor} was accepted.",
            "fast_forward": f"The assignment's counter jumps from {case.floor} to {order.counter}.",
            "expired": f"The assignment expired at {order.expires}.",
        }
    sentences |= {
        "not_in_catalog": f"No publisher of the model has signed {what}.",
        "disagree": f"The catalog and the assignment disagree about {what}.",
        "wrong_hardware": f"{what} is not for {case.hardware!r}.",
        "below_security_floor": f"{what} is below the publisher's security floor.",
    }
    return TrustError(sentences.get(code, f"{what} may not be installed."), code=code)


def _check_slot(name: str, slot: SlotAssignment) -> None:
    """Check what will be part of a path; nobody but the catalog can check the rest."""
    if name != slot.model:
        raise InvalidInputError(f"Slot {name[:80]!r} names another model.", code="malformed")
    check_name(name, "slot")
    _check_sizes(name, slot)
    if slot.mode == "run":
        check_version(slot.version)
        check_digest(slot.manifest)


def _check_sizes(name: str, slot: SlotAssignment) -> None:
    """Bound what a director alone decides: it fills the journal, events and reports."""
    texts = (slot.deployment, slot.rollout, slot.version, slot.manifest)
    numbers = [value for value in msgspec.structs.astuple(slot.policy) if isinstance(value, int)]
    if (
        any(len(text) > MAX_TEXT for text in texts)
        or not all(0 <= number <= MAX_POLICY for number in numbers)
        or min(slot.size, slot.release_counter) < 0
    ):
        raise InvalidInputError(
            f"A text or number of slot {name!r} is out of range.", code="malformed"
        )
