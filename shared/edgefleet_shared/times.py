"""Times on the wire: RFC 3339, UTC, milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime

from edgefleet_shared.errors import InvalidInputError


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
    """Return a time as RFC 3339 in UTC with milliseconds and `Z`; a naive one is taken as UTC."""
    if value.tzinfo:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return value.isoformat(timespec="milliseconds") + "Z"
