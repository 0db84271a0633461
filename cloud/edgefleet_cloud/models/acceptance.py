"""accept: what must hold before a version is published. Reads blobs, changes nothing."""

from __future__ import annotations

import json
from typing import Any

from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.ports import Blobs
from edgefleet_cloud.trust.rules import Entry
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import (
    MANIFEST_MAX_BYTES,
    MEDIA_TYPE,
    FileEntry,
    Manifest,
    decode_manifest,
    target_path,
)

IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"


def read_manifest(blobs: Blobs, digest: str) -> tuple[Manifest, bytes]:
    """Return a stored manifest and its bytes.

    Raises:
        InvalidInputError: It is missing, too large, or breaks a rule of manifests.
    """
    if not blobs.has(digest):
        raise InvalidInputError(
            f"The manifest {digest} is not stored.",
            code="blob_missing",
            hint="Upload it with POST /v1/uploads, then publish again.",
        )
    with blobs.open(digest, 0, MANIFEST_MAX_BYTES + 1) as chunks:
        data = b"".join(chunks)
    return decode_manifest(data), data


def check_files(blobs: Blobs, manifest: Manifest) -> None:
    """Check that every file of every variant is stored, in the size that the manifest says.

    Raises:
        InvalidInputError: code `blob_missing` or `blob_size`.
    """
    for entry in files_of(manifest):
        if not blobs.has(entry.digest):
            raise InvalidInputError(
                f"The file {entry.path} ({entry.digest}) is not stored.",
                code="blob_missing",
                hint="Upload it with POST /v1/uploads, then publish again.",
            )
        if (size := blobs.stat(entry.digest).size) != entry.size:
            raise InvalidInputError(
                f"The file {entry.path} has {size} bytes and the manifest says {entry.size}.",
                code="blob_size",
            )


def check_identity(manifest: Manifest, model: str, version: str, newest: int) -> None:
    """Check that the manifest is that of this version, and newer than any other.

    Args:
        manifest: The version's manifest.
        model: Name in the request.
        version: Version in the request.
        newest: Highest release counter published so far; 0: none.

    Raises:
        InvalidInputError: It names another model or version (code `manifest_mismatch`).
        ConflictError: Its release counter does not grow (code `release_counter`).
    """
    if (manifest.name, manifest.version) != (model, version):
        raise InvalidInputError(
            f"The manifest is of {manifest.name} {manifest.version}, not of {model} {version}.",
            code="manifest_mismatch",
        )
    if manifest.release_counter <= newest:
        raise ConflictError(
            f"The release counter is {manifest.release_counter}, and {newest} is published.",
            code="release_counter",
            hint=f"Build the package again with a release counter above {newest}.",
        )


def entry_of(manifest: Manifest, data: bytes) -> Entry:
    """Return what the catalog must say of a manifest with these bytes."""
    return Entry(
        target_path(manifest.name, manifest.version),
        sha256_digest(data),
        len(data),
        manifest.release_counter,
        manifest.security_floor,
        hardware_of(manifest),
    )


def files_of(manifest: Manifest) -> list[FileEntry]:
    """Return every distinct file, in the manifest's order."""
    found = {e.digest: e for variant in manifest.variants for e in variant.files}
    return list(found.values())


def hardware_of(manifest: Manifest) -> frozenset[str]:
    """Return every hardware string that some variant names."""
    return frozenset(name for variant in manifest.variants for name in variant.hardware)


def variants_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what the API says of each variant; `size` is that of all its files, in bytes."""
    return [
        {
            "id": variant.id,
            "accelerator": variant.accelerator,
            "runtime": variant.runtime.name,
            "hardware": variant.hardware,
            "size": sum(entry.size for entry in variant.files),
        }
        for variant in manifest.variants
    ]


def image_of(manifest: Manifest, data: bytes) -> bytes:
    """Return the OCI image manifest of a package: its manifest as config, each file a layer.

    Source: opencontainers/image-spec 1.1, manifest.md, "Guidelines for Artifact Usage".
    """
    layers = [
        {
            **_descriptor(entry.digest, entry.size, entry.media_type),
            "annotations": {"org.opencontainers.image.title": entry.path},
        }
        for entry in files_of(manifest)
    ]
    image = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": MEDIA_TYPE,
        "config": _descriptor(sha256_digest(data), len(data), MEDIA_TYPE),
        "layers": layers,
    }
    return json.dumps(image, separators=(",", ":")).encode()


def _descriptor(digest: str, size: int, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}
