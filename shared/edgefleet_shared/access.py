"""How a device shows who it is over HTTP: a short-lived statement signed by its own key."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from securesystemslib.signer import Key, Signer

from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.messages import ACCESS_TYPE, Access
from edgefleet_shared.times import format_time, parse_time

SCHEME = "DSSE"
MAX_BYTES = 4096
MAX_LIFE = timedelta(days=1)


def origin(url: str) -> str:
    """Return scheme, host and port of a URL, as a statement's audience (RFC 6454 section 6.2)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def header(fleet: str, device: str, audience: str, expires: datetime, signer: Signer) -> str:
    """Return the value of an `Authorization` header: `DSSE <device>.<base64url envelope>`."""
    body = strict_json.encode(Access(fleet, device, audience, format_time(expires)))
    sealed = dsse.seal(body, ACCESS_TYPE, signer)
    return f"{SCHEME} {device}.{base64.urlsafe_b64encode(sealed).decode()}"


def claimed_device(value: str) -> str | None:
    """Return the device id that a header claims, before any check; None for another scheme."""
    scheme, _, rest = value.partition(" ")
    return rest.partition(".")[0] if scheme == SCHEME else None


def check_header(value: str, fleet: str, audience: str, key: Key, now: datetime) -> str:
    """Return the device id that signed an `Authorization` header.

    Raises:
        InvalidInputError: Not such a header.
        TrustError: Not signed by `key`, for another fleet, device or audience, expired, or valid
            for longer than a day.
    """
    scheme, _, rest = value.partition(" ")
    claimed, _, token = rest.partition(".")
    if scheme != SCHEME:
        raise InvalidInputError(f"The Authorization header is not of scheme {SCHEME}.")
    try:
        sealed = base64.b64decode(token, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidInputError("The Authorization header is not base64url.") from error
    body = dsse.open_sealed(sealed, ACCESS_TYPE, key)
    access = strict_json.decode(body, Access, max_bytes=MAX_BYTES, what="access statement")
    if access.fleet != fleet or access.device != claimed:
        raise TrustError("The access statement is for somebody else.", code="wrong_device")
    if access.audience != audience:
        raise TrustError(
            f"The access statement is for {access.audience[:80]!r}.", code="wrong_audience"
        )
    expires = parse_time(access.expires)
    if expires <= now:
        raise TrustError("The access statement has expired.", code="expired")
    if expires - now > MAX_LIFE:
        raise TrustError("The access statement is valid for too long.", code="lifetime")
    return access.device
