"""Names and ids: what they may look like, so that they are safe as topics, keys, paths and CNs."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid

from edgefleet_shared.errors import InvalidInputError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# [0-9] and not \d, which takes the digits of every script; semver.org's grammar, with lengths.
_NUMBER = r"(?:0|[1-9][0-9]{0,5})"
_LABEL = r"[0-9A-Za-z-]+"
VERSION = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-(?=.{{1,32}}\Z){_LABEL}(?:\.{_LABEL})*)?"
)
MANAGER = "fleet-manager"
"""Common name of the fleet manager's certificate; further processes are `fleet-manager-2` and on,
because one certificate is one MQTT client."""
PROBE = "broker-probe"
"""Common name with which the fleet manager asks whether a broker answers; it may do nothing."""
_OURS = re.compile(rf"(?:{MANAGER}|{PROBE})(?:-.*)?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_name(value: str, what: str) -> str:
    """Return `value` if it may name a device, fleet, model, group or stream.

    Raises:
        InvalidInputError: It may not; `what` says what it was meant to name.
    """
    if not NAME.fullmatch(value):
        raise InvalidInputError(
            f"{value!r} cannot name a {what}.",
            code="invalid_name",
            hint="Use 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit.",
        )
    return value


def is_reserved(name: str) -> bool:
    """Return whether a name is the fleet manager's own at the broker, so that no device has it."""
    return bool(_OURS.fullmatch(name))


def check_device(value: str) -> str:
    """Return `value` if it may name a device.

    Raises:
        InvalidInputError: It may not (code `invalid_name`).
    """
    check_name(value, "device")
    if is_reserved(value):
        raise InvalidInputError(
            f"{value!r} cannot name a device: the fleet manager has that name at the broker.",
            code="invalid_name",
            hint=f"Do not begin with {MANAGER} or {PROBE}.",
        )
    return value


def check_version(value: str) -> str:
    """Return `value` if it is a semantic version such as 1.0.0 or 2.1.0-rc.1.

    Raises:
        InvalidInputError: It is not.
    """
    if not VERSION.fullmatch(value):
        raise InvalidInputError(
            f"{value!r} is not a version.",
            code="invalid_version",
            hint="Use MAJOR.MINOR.PATCH, for example 1.0.0 or 2.1.0-rc.1.",
        )
    return value


def check_digest(value: str) -> str:
    """Return `value` if it is `sha256:` and 64 lower-case hex digits.

    Raises:
        InvalidInputError: It is not.
    """
    if not DIGEST.fullmatch(value):
        raise InvalidInputError(
            f"{value[:80]!r} is not a digest.",
            code="invalid_digest",
            hint="A digest is 'sha256:' followed by 64 lower-case hex digits.",
        )
    return value


def sha256_digest(data: bytes) -> str:
    """Return the digest of `data` as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def new_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix ms, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
