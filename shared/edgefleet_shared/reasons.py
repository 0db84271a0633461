"""Why somebody changes something, as the header `Edgefleet-Reason` carries it."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from edgefleet_shared.errors import InvalidInputError

HEADER = "Edgefleet-Reason"
MAX_CHARACTERS = 500


def encode_reason(reason: str) -> str:
    """Return a reason as a header's value.

    Raises:
        InvalidInputError: It cannot be one (code `reason`).
    """
    return quote(_check(reason), safe=" ,;:/?()'!*+=@#$&")


def decode_reason(value: str) -> str:
    """Return the reason that a header's value says; '' for the empty one.

    Raises:
        InvalidInputError: It says none (code `reason`).
    """
    if not value.isascii():
        raise _bad("it is not ASCII")
    try:
        return _check(unquote_to_bytes(value).decode())
    except UnicodeDecodeError as error:
        raise _bad("it is not UTF-8, percent-encoded") from error


def _check(reason: str) -> str:
    if len(reason) > MAX_CHARACTERS:
        raise _bad(f"it has {len(reason)} characters and may have {MAX_CHARACTERS}")
    if not reason.isprintable():  # a surrogate is not printable either
        raise _bad("it holds a control character or a line break")
    return reason.strip()


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The reason cannot be kept: {why}.",
        code="reason",
        hint=f"One line of at most {MAX_CHARACTERS} characters says why.",
    )
