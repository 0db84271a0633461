"""Two must agree: each way in which an assignment can fail to be ours, new and allowed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile, Targets

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.install import Case, why_not
from edgefleet_shared.messages import ASSIGNMENT_TYPE, REPORTED_TYPE, Assignment, SlotAssignment
from edgefleet_shared.package import target_path
from edgefleet_shared.times import format_time, parse_time
from edgefleet_shared.trust import (
    MAX_COUNTER_JUMP,
    DeviceIdentity,
    open_assignment,
    read_release,
)
from tests.shared.keys import NOW, signer, targets

DIRECTOR, OTHER = signer("director"), signer("other director")
ME = DeviceIdentity("demo", "cam-1", sha256_digest(b"my public key"))
DIGEST = sha256_digest(b"manifest")
SLOT = SlotAssignment("run", "d-1", "digits", "1.0.0", DIGEST, 8, 3)
ASSIGNMENT = Assignment(
    1, ME.fleet, ME.device, ME.key, 8, format_time(NOW), format_time(NOW + timedelta(hours=1)),
    {"digits": SLOT},
)  # fmt: skip


def sealed(**changes: Any) -> bytes:
    """Return an envelope of the assignment, changed, signed by the director."""
    body = msgspec.structs.replace(ASSIGNMENT, **changes)
    return dsse.seal(strict_json.encode(body), ASSIGNMENT_TYPE, DIRECTOR)


def slot(**changes: Any) -> dict[str, SlotAssignment]:
    """Return the slots of an assignment whose only slot is changed."""
    return {"digits": msgspec.structs.replace(SLOT, **changes)}


def opened(data: bytes, floor: int = 7, now: datetime = NOW) -> Assignment:
    """Open an envelope as this device."""
    return open_assignment(data, targets(DIRECTOR), ME, floor=floor, now=now)


def test_a_good_assignment_is_believed():
    """Signed by the director, for me, newer than the floor and not expired: it is returned."""
    assert opened(sealed()) == ASSIGNMENT


CASES: dict[str, tuple[bytes, str]] = {
    "another payload type": (dsse.seal(b"{}", REPORTED_TYPE, DIRECTOR), "payload_type"),
    "signed by a stranger": (dsse.seal(b"{}", ASSIGNMENT_TYPE, OTHER), "signature"),
    "another fleet": (sealed(fleet="demo2"), "wrong_fleet"),
    "another device": (sealed(device="cam-2"), "wrong_device"),
    "my name, another key": (sealed(key=sha256_digest(b"reflashed")), "wrong_key"),
    "the counter of the floor": (sealed(counter=7), "replayed"),
    "a counter below the floor": (sealed(counter=1), "replayed"),
    "a negative counter": (sealed(counter=-1), "replayed"),
    "a counter that jumps": (sealed(counter=8 + MAX_COUNTER_JUMP), "fast_forward"),
    "expired just now": (sealed(expires=format_time(NOW)), "expired"),
    "an expiry that is no time": (sealed(expires="never"), "malformed"),
    "an expiry without a zone": (sealed(expires="2027-01-01T00:00:00"), "malformed"),
    "a slot of another model": (sealed(slots={"faces": SLOT}), "malformed"),
    "a slot that climbs": (
        sealed(slots={"../x": msgspec.structs.replace(SLOT, model="../x")}), "invalid_name"),
    "a slot that climbs, to be stopped": (
        sealed(slots={"../x": msgspec.structs.replace(SLOT, model="../x", mode="stop")}),
        "invalid_name"),
    "a version that climbs": (sealed(slots=slot(version="../1.0.0")), "invalid_version"),
    "a manifest that is no digest": (sealed(slots=slot(manifest="sha256:x")), "invalid_digest"),
    "signed, but no assignment": (dsse.seal(b"{}", ASSIGNMENT_TYPE, DIRECTOR), "malformed"),
    "a later version of the message": (sealed(v=2), "malformed"),
    "an unknown mode": (sealed(slots=slot(mode="maybe")), "malformed"),
    "not an envelope": (b"{}", "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), CASES.values(), ids=CASES)
def test_refused(data, code):
    """Each way of not being this device's newest assignment has its own code."""
    with pytest.raises(EdgeFleetError) as refused:
        opened(data)
    assert isinstance(refused.value, TrustError | InvalidInputError)
    assert refused.value.code == code


def test_the_largest_jump_is_taken():
    """A counter may jump as far as the limit says, and no further."""
    assert opened(sealed(counter=7 + MAX_COUNTER_JUMP)).counter == 7 + MAX_COUNTER_JUMP


def test_a_slot_to_stop_needs_no_package():
    """Stopping names no version and no digest; that is no reason to refuse it."""
    stop = slot(mode="stop", version="", manifest="", size=0, release_counter=0)
    assert opened(sealed(slots=stop)).slots["digits"].mode == "stop"


def test_a_director_without_delegation_is_nobody():
    """Where the offline targets delegate to no director, no assignment is believed."""
    for role in (Targets(expires=NOW), targets(OTHER)):
        with pytest.raises(TrustError) as refused:
            open_assignment(sealed(), role, ME, floor=7, now=NOW)
        assert refused.value.code == "signature"


def test_the_directors_threshold_counts_keys_not_signatures():
    """Two of two means two keys: one key's signature, under both key ids, is not enough."""
    role = targets(DIRECTOR, OTHER, threshold=2)
    envelope = dsse.read(sealed(), ASSIGNMENT_TYPE).to_dict()
    twice = [
        {"keyid": key.public_key.keyid, "sig": envelope["signatures"][0]["sig"]}
        for key in (DIRECTOR, OTHER)
    ]
    forged = strict_json.encode({**envelope, "signatures": twice})
    with pytest.raises(TrustError) as refused:
        open_assignment(forged, role, ME, floor=7, now=NOW)
    assert refused.value.code == "signature"
    both = dsse.read(sealed(), ASSIGNMENT_TYPE)
    both.sign(OTHER)
    data = strict_json.encode(both.to_dict())
    assert open_assignment(data, role, ME, floor=7, now=NOW) == ASSIGNMENT


def test_the_signature_is_checked_before_the_payload_is_read():
    """A payload that cannot be read, signed by a stranger, is refused for its signature."""
    data = dsse.seal(b"\x00 not JSON", ASSIGNMENT_TYPE, OTHER)
    with pytest.raises(TrustError) as refused:
        opened(data)
    assert refused.value.code == "signature"


def target(**changes: Any) -> TargetFile:
    """Return the catalog's entry for the slot, changed."""
    fields: dict[str, Any] = {
        "length": 8,
        "hashes": {"sha256": DIGEST.removeprefix("sha256:")},
        "path": target_path("digits", "1.0.0"),
        "custom": {"release_counter": 3, "security_floor": 2, "hardware": ["*"]},
    } | changes
    custom = fields.pop("custom")
    return TargetFile(**fields, unrecognized_fields={"custom": custom} if custom else {})


def custom(**changes: Any) -> TargetFile:
    """Return the catalog's entry for the slot, its custom part changed."""
    return target(custom={"release_counter": 3, "security_floor": 2, "hardware": ["*"]} | changes)


def objection(entry: TargetFile | None, floor: int = 0, slot: SlotAssignment = SLOT) -> str:
    """Return the code by which the slot is refused, given the catalog's entry; '' if it is not."""
    try:
        release = read_release(entry) if entry else None
    except TrustError as error:
        return error.code
    return why_not(Case(ME, "rpi5", NOW, 7, "", ASSIGNMENT, slot, release, floor))


def test_agreement():
    """The catalog's entry and the assignment say the same, at or above both floors."""
    assert not objection(target())
    assert not objection(target(), floor=3)
    assert not objection(target(custom={"release_counter": 3, "hardware": ["rpi4", "rpi5"]}))


DISAGREE: dict[str, tuple[TargetFile | None, int, str]] = {
    "nothing in the catalog": (None, 0, "not_in_catalog"),
    "another version's entry": (
        target(path=target_path("digits", "1.0.1")), 0, "not_in_catalog"),
    "another model's entry": (target(path=target_path("faces", "1.0.0")), 0, "not_in_catalog"),
    "another digest": (target(hashes={"sha256": "0" * 64}), 0, "disagree"),
    "no sha256 in the catalog": (target(hashes={"sha512": "0" * 128}), 0, "disagree"),
    "another length": (target(length=9), 0, "disagree"),
    "another release counter": (custom(release_counter=4), 0, "disagree"),
    "no release counter": (custom(release_counter=None), 0, "disagree"),
    "no custom part": (target(custom=None), 0, "disagree"),
    "a custom part that is text": (target(custom="release_counter"), 0, "disagree"),
    "a counter as a float": (custom(release_counter=3.0), 0, "disagree"),
    "a floor as text": (custom(security_floor="2"), 0, "disagree"),
    "a floor that is null": (custom(security_floor=None), 0, "disagree"),
    "hardware as text": (custom(hardware="rpi5"), 0, "disagree"),
    "hardware that is no name": (custom(hardware=["rpi5", 5]), 0, "disagree"),
    "other hardware": (custom(hardware=["rpi4", "rpi50", "rpi*"]), 0, "wrong_hardware"),
    "no hardware": (custom(hardware=[]), 0, "wrong_hardware"),
    "below the catalog's floor": (custom(security_floor=4), 0, "below_security_floor"),
    "below the device's floor": (target(), 4, "below_security_floor"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "floor", "code"), DISAGREE.values(), ids=DISAGREE)
def test_disagreement(entry, floor, code):
    """Where publisher and director do not say the same, the slot is refused by its code."""
    assert objection(entry, floor) == code


def test_a_release_counter_of_true_is_not_one():
    """True equals 1 in Python; as a release counter it is refused."""
    one = msgspec.structs.replace(SLOT, release_counter=1)
    assert objection(custom(release_counter=True), slot=one) == "disagree"


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001 - the zone is added below
def test_times_travel(moment):
    """A time survives format and parse to the millisecond, and its text has one length."""
    moment = moment.replace(tzinfo=UTC)
    text = format_time(moment)
    assert len(text) == len("2026-11-21T12:00:00.000Z")
    assert timedelta(0) <= moment - parse_time(text) < timedelta(milliseconds=1)


def test_a_time_of_another_zone_is_converted():
    """Noon at +02:00 is written as 10:00 UTC."""
    noon = datetime(2026, 11, 21, 12, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(noon) == "2026-11-21T10:00:00.000Z"


@pytest.mark.parametrize(
    "text", ["", "now", "2026-11-21", "2026-11-21T12:00:00", "2026-11-21T12:00:00+02:00",
             "2026-13-01T00:00:00Z", "2026-11-21T12:00:00Z\n"],
)  # fmt: skip
def test_what_is_no_utc_time_is_refused(text):
    """Local times, other zones and anything else are refused, not guessed."""
    with pytest.raises(InvalidInputError) as refused:
        parse_time(text)
    assert refused.value.code == "malformed"
