"""The audit chain: what of an event is hashed, and what the daily signed statement says.

Both sides compute it: the fleet manager when it writes a row, `edgefleet audit verify` when it
reads one. What is hashed is JSON in the canonical form of RFC 8785, so that any language can do it
from the columns alone; docs/reference.md has a test vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import rfc8785

from edgefleet_shared import strict_json

DOMAIN = "edgefleet.audit.v1"
"""First element of what is hashed: no hash of anything else can be taken for a row's."""
BEGINNING = ""
"""What the first row of a log has instead of the hash of the row before it."""

HEAD_TYPE = "application/vnd.edgefleet.audit-head.v1+json"
HEAD_MAX_BYTES = 16 * 1024


class Entry(NamedTuple):
    """One row of the log, without its hash; the fields are hashed in this order."""

    id: int
    ts: str
    type: str
    step: str
    subject: str
    actor: str
    message: str
    data: Mapping[str, Any]
    reason: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def canonical(previous: str, entry: Entry) -> bytes:
    """Return the bytes whose sha256 is the row's hash: `[DOMAIN, previous, ...entry]`.

    Raises:
        ValueError: A number or text that JSON cannot say exactly.
    """
    return rfc8785.dumps([DOMAIN, previous, *entry])


def row_hash(previous: str, entry: Entry) -> str:
    """Return the hash of a row, 64 hexadecimal digits.

    Args:
        previous: The hash of the row before it; `BEGINNING` for the first.
        entry: The row.

    Raises:
        ValueError: A number or text that JSON cannot say exactly.
    """
    return hashlib.sha256(canonical(previous, entry)).hexdigest()


class Head(msgspec.Struct, frozen=True):
    """A signed statement: this was the log at that time.

    Attributes:
        fleet: The fleet's name.
        number: 1 for the first statement, and so on.
        last: The id of the newest row.
        count: Rows up to it, from the very first.
        hash: Its hash.
        time: When it was signed (RFC 3339, UTC).
        previous: sha256 of the payload of the statement before, hexadecimal; '' for the first.
    """

    v: Literal[1]
    fleet: str
    number: int
    last: int
    count: int
    hash: str
    time: str
    previous: str


def head_digest(payload: bytes) -> str:
    """Return how the next statement names one, by the bytes that were signed."""
    return hashlib.sha256(payload).hexdigest()


def read_head(payload: bytes) -> Head:
    """Return the statement in a payload whose signature has been checked.

    Raises:
        InvalidInputError: It is none.
    """
    return strict_json.decode(payload, Head, max_bytes=HEAD_MAX_BYTES, what="audit statement")
