"""The package manifest: what a model is made of, what it runs on, how it proves itself.

A package is a set of raw blobs addressed by sha256 and this manifest, whose exact bytes are the TUF
target `models/<name>/<version>/manifest.json`. The blobs lie in an OCI image layout; there is no
archive and no code: a file that may execute has no role and cannot be expressed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.fpga import Fpga, Port, Registers, SlotFiles
from edgefleet_shared.manifest import (
    Batching,
    ContainerNeed,
    Datatype,
    FileEntry,
    Golden,
    Limits,
    Manifest,
    ReferenceHistogram,
    Role,
    RuntimeName,
    RuntimeNeed,
    TensorSpec,
    Variant,
)
from edgefleet_shared.manifest_rules import MAX_FILES, SESSION_OPTIONS, check_manifest, check_path

__all__ = [
    "EVERY_HARDWARE",
    "MANIFEST_MAX_BYTES",
    "MAX_FILES",
    "MEDIA_TYPE",
    "SESSION_OPTIONS",
    "Batching",
    "ContainerNeed",
    "Datatype",
    "FileEntry",
    "Fpga",
    "Golden",
    "Limits",
    "Manifest",
    "Port",
    "ReferenceHistogram",
    "Registers",
    "Role",
    "RuntimeName",
    "RuntimeNeed",
    "SlotFiles",
    "TensorSpec",
    "Variant",
    "check_manifest",
    "check_path",
    "decode_manifest",
    "encode_manifest",
    "fitting_variants",
    "publisher_role",
    "target_path",
    "unfit",
]

MANIFEST_MAX_BYTES = 64 * 1024
EVERY_HARDWARE = "*"
"""What a variant names that runs anywhere."""
MEDIA_TYPE = "application/vnd.edgefleet.package.v1+json"


def target_path(name: str, version: str) -> str:
    """Return the TUF target path of a model version's manifest."""
    return f"models/{name}/{version}/manifest.json"


def publisher_role(name: str) -> str:
    """Return the TUF role that may sign the versions of one model."""
    return f"publisher/{name}"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that are signed. Decoding them gives an equal manifest.

    Raises:
        InvalidInputError: The manifest breaks a rule of `check_manifest` or is over 64 kB.
    """
    check_manifest(manifest)
    data = msgspec.json.format(strict_json.encode(manifest), indent=1)
    if len(data) > MANIFEST_MAX_BYTES:
        raise InvalidInputError(
            f"The manifest has {len(data)} bytes; {MANIFEST_MAX_BYTES} is the limit.",
            code="manifest_too_large",
            hint="Give fewer reference features or fewer files.",
        )
    decode_manifest(data)  # what no device could read is not signed
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        InvalidInputError: Malformed, or it breaks a rule of `check_manifest`.
    """
    manifest = strict_json.decode(data, Manifest, max_bytes=MANIFEST_MAX_BYTES, what="manifest")
    check_manifest(manifest)
    return manifest


def fitting_variants(manifest: Manifest, able: Sequence[Variant], hardware: str) -> list[Variant]:
    """Return the variants among which a device may choose, in the manifest's order.

    An exact hardware string wins over `*`. Where several fit, the device chooses by measuring, and
    only by the publisher's own golden vectors: if one of them has none, all are refused, so that
    nobody but the publisher chooses. A variant's fallback is no rival of it.

    Args:
        manifest: The package, for the message.
        able: Those of its variants that could run: accelerator, runtime and memory are there.
        hardware: The device's hardware id.

    Raises:
        InvalidInputError: code `no_compatible_variant` or `ambiguous_variant`.
    """
    exact = [v for v in able if hardware in v.hardware]
    found = exact or [v for v in able if EVERY_HARDWARE in v.hardware]
    stand_ins = {v.fallback for v in found}
    found = [v for v in found if v.id not in stand_ins]
    if len(found) > 1 and all(v.golden is not None for v in found):
        return found
    code = unfit(len(found))
    if not code:
        return found
    offered = _listed(found or able)
    if not found:
        raise InvalidInputError(
            f"No variant of {manifest.name} {manifest.version} runs on {hardware!r}.",
            code=code,
            hint=f"Usable here by accelerator: {offered or 'none'}.",
        )
    unmeasured = next(v.id for v in found if v.golden is None)
    raise InvalidInputError(
        f"{len(found)} variants of {manifest.name} {manifest.version} fit {hardware!r} ({offered}),"
        f" and {unmeasured!r} has no golden vectors to be measured by.",
        code=code,
        hint="Publish a version in which one variant fits, or all that fit have golden vectors.",
    )


def _listed(variants: Sequence[Variant]) -> str:
    return ", ".join(f"{v.id} ({v.accelerator}: {' '.join(v.hardware)})" for v in variants)


def unfit(fitting: int) -> str:
    """Return '' if one variant fits a device, else the code by which it is refused.

    Several count as one where golden vectors tell them apart (`fitting_variants`).
    """
    if fitting == 1:
        return ""
    return "ambiguous_variant" if fitting > 1 else "no_compatible_variant"
