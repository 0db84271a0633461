"""A device's assignment and everything that it needs for it, in a folder: for a USB stick."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.durable import sync_folder, write_file
from edgefleet_provisioning.errors import RefusedError
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest
from edgefleet_shared.messages import ASSIGNMENT_TYPE, DESIRED_MAX_BYTES, Assignment, Desired
from edgefleet_shared.package import EVERY_HARDWARE, Manifest, decode_manifest


class Exported(NamedTuple):
    """What lies in the folder: the assignment's counter and versions, blobs and their bytes."""

    counter: int
    versions: dict[str, str]
    blobs: int
    bytes: int


def export(api: Api, device: str, folder: Path) -> Exported:
    """Write what `edgefleet-agent import-bundle` takes; a blob that is there already stays.

    Nothing is verified but digests: the device judges the document, as it does whatever came.

    Args:
        api: The fleet manager.
        device: Whose document.
        folder: Made if it is not there; may hold what an earlier export left.

    Raises:
        NotFoundError: There is no such device, or nothing is assigned to it.
        RefusedError: The fleet manager sends other bytes than it signed (code `digest_mismatch`).
        InvalidInputError: The folder cannot be written (code `not_writable`).
    """
    hardware = api.get(f"/v1/devices/{segment(device)}")["hardware"]
    document = api.raw(f"/v1/devices/{segment(device)}/desired")
    order = _assignment(document)
    blobs = folder / "blobs" / "sha256"
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        sizes: dict[str, int] = {}
        for slot in order.slots.values():
            if slot.mode == "run":
                sizes |= _bring(api, blobs, slot.manifest)
                manifest = (blobs / slot.manifest.removeprefix("sha256:")).read_bytes()
                for digest in _needed(decode_manifest(manifest), hardware):
                    sizes |= _bring(api, blobs, digest)
        sync_folder(blobs)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be written: {error.strerror}.",
            code="not_writable",
            hint="Is there room? What is there already is not fetched again.",
        ) from error
    # Last, so that a folder with a document is whole.
    write_file(folder / "desired.json", document)
    versions = {name: s.version for name, s in order.slots.items() if s.mode == "run"}
    return Exported(order.counter, versions, len(sizes), sum(sizes.values()))


def _assignment(document: bytes) -> Assignment:
    desired = strict_json.decode(
        document, Desired, max_bytes=DESIRED_MAX_BYTES, what="desired document"
    )
    envelope = dsse.read(base64.b64decode(desired.assignment), ASSIGNMENT_TYPE)
    return strict_json.decode(
        envelope.payload, Assignment, max_bytes=dsse.ENVELOPE_MAX_BYTES, what="assignment"
    )


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
