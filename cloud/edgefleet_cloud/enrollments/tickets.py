"""The one-time ticket that lets a device ask for its certificate. Pure."""

from __future__ import annotations

import base64
import binascii
import secrets
from datetime import datetime
from typing import Literal

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_device, sha256_digest
from edgefleet_shared.times import format_time

MAX_BYTES = 4096


class Ticket(msgspec.Struct, frozen=True):
    """What stands in a ticket; `root` is the digest of the fleet's first TUF root.

    A ticket for one device names it; one for a group has `group`, with which their ids begin.
    """

    v: Literal[1]
    fleet: str
    device: str
    url: str
    secret: str
    root: str
    not_after: str
    group: str = ""


def issue(
    fleet: str, device: str, url: str, root: str, not_after: datetime, group: str = ""
) -> Ticket:
    """Return a ticket with a fresh secret of 256 bits."""
    secret = secrets.token_urlsafe(32)
    return Ticket(1, fleet, device, url, secret, root, format_time(not_after), group)


def encode(ticket: Ticket) -> str:
    """Return the text that is handed to the device."""
    return base64.urlsafe_b64encode(strict_json.encode(ticket)).decode().rstrip("=")


def decode(text: str) -> Ticket:
    """Return what stands in a ticket's text.

    Raises:
        InvalidInputError: Not a ticket (code `invalid_ticket`).
    """
    try:
        padded = text[: 2 * MAX_BYTES] + "=" * (-len(text) % 4)  # longer is refused below
        body = base64.b64decode(padded, altchars=b"-_", validate=True)
        ticket = strict_json.decode(body, Ticket, max_bytes=MAX_BYTES, what="ticket")
        check_device(ticket.device + ticket.group)  # one of them is empty
    except (InvalidInputError, ValueError, binascii.Error) as error:
        raise InvalidInputError(
            "This is not a ticket.",
            code="invalid_ticket",
            hint="Copy the whole text that `edgefleet device ticket` printed.",
        ) from error
    return ticket


def secret_hash(ticket: Ticket) -> str:
    """Return what the fleet manager keeps of a ticket's secret."""
    return sha256_digest(ticket.secret.encode())
