"""A renewal on disk: what was asked, and the switch to what came back. Power may fail anywhere.

`renewal.json` holds the new key and the sealed request before anything is sent, so that a lost
answer is asked for again by the same bytes. `renewed.json` is the switch: once it is there the new
files stand, and whoever starts next puts them in place if that was cut short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edgefleet_agent import durable
from edgefleet_shared import strict_json

MAX_BYTES = 256 * 1024
PENDING = "renewal.json"
SWITCH = "renewed.json"
FILES = {"device.key": 0o600, "device.crt": 0o644, "tls.key": 0o600, "tls.crt": 0o644}
CA = "ca.crt"

T = TypeVar("T")


class Pending(msgspec.Struct, frozen=True):
    """A renewal that was begun.

    Attributes:
        sealed: The request's DSSE envelope, base64.
        key: The new private key, PEM.
        digest: Digest of its public half.
    """

    v: Literal[1]
    sealed: str
    key: str
    digest: str


class _Switch(msgspec.Struct, frozen=True):
    """New contents of files, by their names."""

    v: Literal[1]
    files: dict[str, str]


def pending(folder: Path) -> Pending | None:
    """Return the renewal that was begun and not ended, or None."""
    return _read(folder / PENDING, Pending)


def note(folder: Path, begun: Pending) -> None:
    """Write down a renewal before it is sent."""
    durable.atomic_write(folder / PENDING, strict_json.encode(begun))


def forget(folder: Path) -> None:
    """Give up what was begun: the device has enrolled anew."""
    for name in (SWITCH, PENDING):
        (folder / name).unlink(missing_ok=True)
    durable.fsync_folder(folder)


def switch(folder: Path, *, key: str, certificate: str, ca: str, session: bool) -> None:
    """Put a new key, its certificate and the authorities in place, all of them or none.

    Args:
        folder: The identity's.
        key: Private key, PEM.
        certificate: Its certificate, PEM.
        ca: The authorities, PEM.
        session: Whether the key is for TLS alone.
    """
    stem = "tls" if session else "device"
    files = {f"{stem}.key": key, f"{stem}.crt": certificate, CA: ca}
    durable.atomic_write(folder / SWITCH, strict_json.encode(_Switch(1, files)))
    finish(folder)


def finish(folder: Path) -> None:
    """Complete a switch that was cut short; nothing to do else."""
    found = _read(folder / SWITCH, _Switch)
    if found is None:
        return
    for name, content in found.files.items():
        if name in FILES or name == CA:
            durable.atomic_write(folder / name, content.encode(), FILES.get(name, 0o644))
    (folder / PENDING).unlink(missing_ok=True)
    (folder / SWITCH).unlink(missing_ok=True)
    durable.fsync_folder(folder)


def _read(path: Path, kind: type[T]) -> T | None:
    data = durable.read_bytes(path)
    if data is None:
        return None
    return strict_json.decode(data, kind, max_bytes=MAX_BYTES, what=f"file identity/{path.name}")
