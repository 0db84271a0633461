"""A package as an OCI image layout, so that any OCI registry can serve it.

Source: opencontainers/image-spec, image-layout.md and manifest.md. The edgefleet manifest is the
image's config; every file is a layer, raw, titled with its path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefleet_provisioning.durable import Content, write_tree
from edgefleet_provisioning.variant_build import Blob
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import MEDIA_TYPE, Manifest

IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def write(folder: Path, manifest: Manifest, data: bytes, blobs: Sequence[Blob]) -> None:
    """Write a package into a new folder, all or nothing.

    Args:
        folder: Must not exist.
        manifest: The version's manifest.
        data: Its exact bytes.
        blobs: Its files.

    Raises:
        InvalidInputError: The folder exists or cannot be written.
    """
    layers = [
        {
            **_descriptor(blob.entry.digest, blob.entry.size, blob.entry.media_type),
            "annotations": {"org.opencontainers.image.title": blob.entry.path},
        }
        for blob in blobs
    ]
    image = _encode({
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": MEDIA_TYPE,
        "config": _descriptor(sha256_digest(data), len(data), MEDIA_TYPE),
        "layers": layers,
    })  # fmt: skip
    index = _encode({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [
            {
                **_descriptor(sha256_digest(image), len(image), IMAGE_TYPE),
                "artifactType": MEDIA_TYPE,
                "annotations": {
                    "org.opencontainers.image.ref.name": f"{manifest.name}-{manifest.version}"
                },
            }
        ],
    })  # fmt: skip
    files = {
        "oci-layout": Content(b'{"imageLayoutVersion":"1.0.0"}'),
        "index.json": Content(index),
        _path(sha256_digest(image)): Content(image),
        _path(sha256_digest(data)): Content(data),
    }
    for blob in blobs:
        body = blob.source if isinstance(blob.source, bytes) else blob.source.read_bytes()
        files[_path(blob.entry.digest)] = Content(body)
    write_tree(folder, files)


def _descriptor(digest: str, size: int, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
