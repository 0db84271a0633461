"""The Authorization header of a device."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest

from edgefleet_shared import access, dsse, strict_json
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import ACCESS_TYPE, REPORTED_TYPE, Access
from edgefleet_shared.times import format_time
from tests.shared.keys import NOW, signer

CAM, OTHER = signer("cam-1"), signer("cam-2")
SOON = NOW + timedelta(minutes=5)
HERE = "http://fleet.example:8080"
GOOD = access.header("demo", "cam-1", HERE, SOON, CAM)


def header_of(sealed: bytes, device: str = "cam-1") -> str:
    """Return a header that claims `device` and carries any envelope."""
    return f"DSSE {device}.{base64.urlsafe_b64encode(sealed).decode()}"


def test_a_good_header_names_its_device():
    """The device that signed is returned, and is what the header claims."""
    assert access.claimed_device(GOOD) == "cam-1"
    assert access.check_header(GOOD, "demo", HERE, CAM.public_key, NOW) == "cam-1"


LATE = Access("demo", "cam-1", HERE, format_time(SOON))
CASES: dict[str, tuple[str, str]] = {
    "signed by another device": (access.header("demo", "cam-1", HERE, SOON, OTHER), "signature"),
    "for another host": (
        access.header("demo", "cam-1", "http://evil.example", SOON, CAM), "wrong_audience"
    ),
    "for another fleet": (access.header("demo2", "cam-1", HERE, SOON, CAM), "wrong_device"),
    "claims another device": (GOOD.replace("cam-1", "cam-2"), "wrong_device"),
    "expired": (access.header("demo", "cam-1", HERE, NOW, CAM), "expired"),
    "valid for a week": (
        access.header("demo", "cam-1", HERE, NOW + timedelta(days=7), CAM), "lifetime"),
    "a report instead": (
        header_of(dsse.seal(strict_json.encode(LATE), REPORTED_TYPE, CAM)), "payload_type"),
    "not an access statement": (header_of(dsse.seal(b"{}", ACCESS_TYPE, CAM)), "malformed"),
    "a statement that is too long": (
        header_of(dsse.seal(b'{"a":"' + b"x" * 5000 + b'"}', ACCESS_TYPE, CAM)), "malformed"),
    "a bearer token": (GOOD.replace("DSSE ", "Bearer "), "invalid_input"),
    "lower-case scheme": (GOOD.replace("DSSE", "dsse"), "invalid_input"),
    "not base64": ("DSSE cam-1.%%%", "invalid_input"),
    "spaces in the token": (GOOD[:40] + " " + GOOD[40:], "invalid_input"),
    "not ASCII": ("DSSE cam-1.\u00e9", "invalid_input"),
    "no token": ("DSSE cam-1", "malformed"),
    "nothing": ("", "invalid_input"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "code"), CASES.values(), ids=CASES)
def test_refused(value, code):
    """Every header that does not show who asks, now, is refused by its code."""
    with pytest.raises(EdgeFleetError) as refused:
        access.check_header(value, "demo", HERE, CAM.public_key, NOW)
    assert refused.value.code == code


def test_other_schemes_claim_nobody():
    """A bearer token names no device; an empty DSSE header names the empty one."""
    assert access.claimed_device("Bearer abc.def") is None
    assert access.claimed_device("") is None
    assert access.claimed_device("DSSE ") == ""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://Fleet.example:8080/v1/blobs/sha256:0", "http://fleet.example:8080"),
        ("https://fleet.example/v1", "https://fleet.example"),
        ("http://fleet.example@evil.example/v1", "http://evil.example"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
    ],
)
def test_the_origin_is_where_a_request_goes(url, expected):
    """Scheme, host and port, nothing that only looks like them."""
    assert access.origin(url) == expected
