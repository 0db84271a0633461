"""A device's assignment and everything that it needs for it, in a folder: for a USB stick.

A stick is pulled out early, is full, or was never mounted. Blobs come first, each under another
name until it is whole and on the medium; the document comes last. So a folder with a document
holds a whole bundle, the new one or the one before.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.durable import sync_folder, write_file
from edgefleet_provisioning.errors import RefusedError
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest
from edgefleet_shared.messages import ASSIGNMENT_TYPE, DESIRED_MAX_BYTES, Assignment, Desired
from edgefleet_shared.package import EVERY_HARDWARE, Manifest, decode_manifest

MEDIA = (Path("/media"), Path("/run/media"), Path("/mnt"))
"""Where sticks are mounted; what lies there and is no mount is a stick that is not there."""
DOCUMENT = "desired.json"


class Exported(NamedTuple):
    """What lies in the folder.

    Attributes:
        counter: The assignment's.
        versions: Version by slot.
        blobs: How many.
        bytes: What they have together.
        until: A device takes the document until then (RFC 3339).
    """

    counter: int
    versions: dict[str, str]
    blobs: int
    bytes: int
    until: str


def check_target(folder: Path, *, create: bool, media: Sequence[Path] = MEDIA) -> None:
    """Check that a bundle may be written there, before anything is fetched; make it if asked to.

    Args:
        folder: Where to.
        create: Make what is missing, and take a folder that looks like an absent stick's.
        media: Folders below which sticks are mounted.

    Raises:
        InvalidInputError: It is not there (code `missing_folder`), no stick is mounted there
            (`not_mounted`), or it cannot be written to (`not_writable`).
    """
    if not create and not folder.is_dir():
        what = "is no folder" if folder.exists() else "is not there"
        raise InvalidInputError(
            f"{folder} {what}.",
            code="missing_folder",
            hint="Is the stick mounted (`findmnt`)? --create makes the folder.",
        )
    if not create and _is_absent_stick(folder.resolve(), media):
        raise InvalidInputError(
            f"Nothing is mounted at {folder}: the bundle would lie on this machine's own disk.",
            code="not_mounted",
            hint="Mount the stick (`lsblk` lists it), or say --create to write there all the same.",
        )
    try:
        _make(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"{folder} may not be written to.",
            code="not_writable",
            hint="Mount the stick for writing, as this user (`mount -o remount,rw,uid=...`).",
        )


def export(api: Api, device: str, folder: Path) -> Exported:
    """Write what `edgefleet-agent import-bundle` takes; a blob that is there already stays.

    Nothing is verified but digests: the device judges the document, as it does whatever came.

    Args:
        api: The fleet manager.
        device: Whose document.
        folder: That `check_target` took; may hold what an earlier export left.

    Raises:
        NotFoundError: There is no such device, or nothing is assigned to it.
        RefusedError: The fleet manager sends other bytes than it signed (code `digest_mismatch`).
        InvalidInputError: The folder holds another device's bundle (code `exists`), or cannot be
            written (`not_writable`).
    """
    hardware = api.get(f"/v1/devices/{segment(device)}")["hardware"]
    document = api.raw(f"/v1/devices/{segment(device)}/desired")
    order = _assignment(_desired(document))
    _check_owner(folder / DOCUMENT, device)
    blobs = folder / "blobs" / "sha256"
    try:
        _make(blobs)
        for leftover in (*blobs.glob(".*.partial"), *folder.glob(f".{DOCUMENT}.*.partial")):
            leftover.unlink()
        sizes: dict[str, int] = {}
        for slot in order.slots.values():
            if slot.mode == "run":
                sizes |= _bring(api, blobs, slot.manifest)
                manifest = (blobs / slot.manifest.removeprefix("sha256:")).read_bytes()
                for digest in _needed(decode_manifest(manifest), hardware):
                    sizes |= _bring(api, blobs, digest)
        sync_folder(blobs)
    except OSError as error:
        raise _unwritable(folder, error) from error
    # Last, so that a folder with a document is whole.
    write_file(folder / DOCUMENT, document)
    versions = {name: s.version for name, s in order.slots.items() if s.mode == "run"}
    until = min(order.expires, _timestamp_ends(document))
    return Exported(order.counter, versions, len(sizes), sum(sizes.values()), until)


def _is_absent_stick(folder: Path, media: Sequence[Path]) -> bool:
    """Tell whether a folder lies where sticks are mounted, and on the same disk as that."""
    for place in media:
        if place in folder.parents and place.exists():
            return place.stat().st_dev == folder.stat().st_dev
    return False


def _make(folder: Path) -> None:
    """Make a folder and its parents, so that a power cut does not lose their names."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def _check_owner(document: Path, device: str) -> None:
    """Leave another device's bundle alone; what cannot be read is nobody's."""
    try:
        theirs = _assignment(_desired(document.read_bytes())).device
    except (OSError, ValueError, InvalidInputError):
        return
    if theirs != device:
        raise InvalidInputError(
            f"{document.parent} holds the bundle of {theirs}.",
            code="exists",
            hint=f"Give each device a folder: {document.parent / device} (with --create).",
        )


def _unwritable(folder: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(
        f"{folder} cannot be written: {error.strerror or error}.",
        code="not_writable",
        hint="Is there room (`df`), and is the stick still there? The bundle that was there before "
        "is whole; what was written of the new one is not fetched again.",
    )


def _desired(document: bytes) -> Desired:
    return strict_json.decode(
        document, Desired, max_bytes=DESIRED_MAX_BYTES, what="desired document"
    )


def _assignment(desired: Desired) -> Assignment:
    envelope = dsse.read(base64.b64decode(desired.assignment), ASSIGNMENT_TYPE)
    return strict_json.decode(
        envelope.payload, Assignment, max_bytes=dsse.ENVELOPE_MAX_BYTES, what="assignment"
    )


def _timestamp_ends(document: bytes) -> str:
    """Return when the trust bundle's timestamp ends, the first of its files to do so."""
    files = bundle.decode(base64.b64decode(_desired(document).bundle))
    try:
        return str(json.loads(files["timestamp.json"])["signed"]["expires"])
    except (KeyError, ValueError, TypeError) as error:
        raise RefusedError(
            "The fleet manager sent a document without a timestamp.", code="malformed"
        ) from error


def _needed(manifest: Manifest, hardware: str) -> dict[str, int]:
    """Return the files of every variant that may fit; which accelerators are there it knows."""
    fitting = [v for v in manifest.variants if {hardware, EVERY_HARDWARE} & {*v.hardware}]
    return {entry.digest: entry.size for variant in fitting for entry in variant.files}


def _bring(api: Api, blobs: Path, digest: str) -> dict[str, int]:
    name = check_digest(digest).removeprefix("sha256:")
    path = blobs / name
    if path.exists() and _hash(path) == name:
        return {digest: path.stat().st_size}
    partial = blobs / f".{name}.partial"
    hasher, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for chunk in api.stream(f"/v1/blobs/{segment(digest)}"):
                file.write(chunk)
                hasher.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if hasher.hexdigest() != name:
            raise RefusedError(
                f"The fleet manager sent other bytes than {digest}.",
                code="digest_mismatch",
                hint="Run it again; if it stays so, look at the fleet manager's disk.",
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {digest: size}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
