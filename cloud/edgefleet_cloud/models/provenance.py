"""Checks the Model Signing bundle of a version, and lists it beside the package. Reads blobs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from securesystemslib.signer import Key

from edgefleet_cloud.models.acceptance import IMAGE_TYPE
from edgefleet_cloud.ports import Blobs
from edgefleet_shared import provenance
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import check_digest, sha256_digest
from edgefleet_shared.package import Manifest


def check(blobs: Blobs, digest: str, manifest: Manifest, data: bytes, keys: Sequence[Key]) -> None:
    """Check that a stored bundle vouches for a package, by a key of its publisher.

    Args:
        blobs: Where the bundle lies.
        digest: The bundle's.
        manifest: The package's.
        data: The manifest's exact bytes.
        keys: The publisher's keys, as the catalog delegates to them.

    Raises:
        InvalidInputError: It is missing, or none that can be verified.
        TrustError: It does not vouch for this package (code `provenance`).
    """
    check_digest(digest)
    if not blobs.has(digest):
        raise InvalidInputError(
            f"The signature bundle {digest} is not stored.",
            code="blob_missing",
            hint="Upload it with POST /v1/uploads, then publish again.",
        )
    with blobs.open(digest, 0, provenance.BUNDLE_MAX_BYTES + 1) as chunks:
        bundle = b"".join(chunks)
    vouched = _open(bundle, [key for key in keys if provenance.can_sign(key)])
    provenance.check_files(vouched, provenance.resources_of(manifest, data))


def missing(what: str) -> TrustError:
    """Return the refusal of a version that brings no bundle where one is demanded."""
    return TrustError(
        f"{what} brings no signature bundle, and this fleet demands one.",
        code="provenance_missing",
        hint="`edgefleet model publish` makes one where the publisher's key is ECDSA P-256.",
    )


def referrer_of(image: bytes, bundle: str, size: int) -> bytes:
    """Return the OCI manifest that attaches a bundle to a package's image.

    Source: opencontainers/image-spec 1.1, manifest.md, `subject`.
    """
    descriptor = {"mediaType": provenance.BUNDLE_TYPE, "digest": bundle, "size": size}
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": provenance.BUNDLE_TYPE,
        "config": descriptor,
        "layers": [descriptor],
        "subject": {"mediaType": IMAGE_TYPE, "digest": sha256_digest(image), "size": len(image)},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _open(bundle: bytes, keys: Sequence[Key]) -> provenance.Resources:
    refusal = TrustError(
        "No key of the model's publisher signed the bundle.",
        code="provenance",
        hint="Sign it with the key that `edgefleet trust show` names for the publisher.",
    )
    for key in keys:
        try:
            return provenance.open_bundle(bundle, key)
        except TrustError as error:
            refusal = error
    raise refusal
