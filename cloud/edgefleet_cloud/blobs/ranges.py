"""The Range header (RFC 9110 section 14): one range of bytes, or the whole."""

from __future__ import annotations

import re
from typing import NamedTuple

from edgefleet_cloud.errors import RangeError

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Span(NamedTuple):
    """`length` bytes from `start`."""

    start: int
    length: int


class UnsatisfiableError(RangeError):
    """No byte of the blob is in the range; `headers` tell its size."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The blob has {size} bytes; the range asked for has none of them.",
            hint=f"Ask for bytes between 0 and {max(size - 1, 0)}.",
        )
        self.headers = {"Content-Range": f"bytes */{size}"}


def parse(header: str | None, size: int) -> Span | None:
    """Return the range that a header asks for; None: the whole.

    A header that is malformed or asks for several ranges counts as absent, as the RFC allows.

    Raises:
        UnsatisfiableError: The range begins beyond the end, or is empty.
    """
    found = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last n bytes
        length = min(int(last), size)
        if not length:
            raise UnsatisfiableError(size)
        return Span(size - length, length)
    start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableError(size)
    return Span(start, end - start + 1)
