"""A model that others made is, to the last byte, what they signed (OpenSSF Model Signing).

Asked twice: of the model's file before anything reads it as a model, and of every file that went
into the package, by the digests that the package has.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from edgefleet_provisioning.fleet_folder import read
from edgefleet_provisioning.variant_build import Blob, hash_file
from edgefleet_shared import provenance
from edgefleet_shared.errors import TrustError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.provenance import SINGLE_FILE, Resources

SIGNATURE = "model.sig"
_ROLES = {"onnx", "onnx_external", "tflite"}


class Vouched(NamedTuple):
    """What a signature vouches for.

    Attributes:
        resources: Digests by name.
        folder: The name of the model's folder in the signed one, with a slash; '' if it is the one.
        note: Who signed what, for the package's manifest.
    """

    resources: Resources
    folder: str
    note: str


def demand(model: Path, key: Path, signature: Path | None) -> Vouched:
    """Check that a key signed the model's file.

    Args:
        model: The file.
        key: PEM of the P-256 public key that must have signed.
        signature: The bundle; None: `model.sig` beside the model.

    Raises:
        InvalidInputError: Key or bundle are missing, or cannot be used.
        TrustError: It was not signed, or not by this key (code `provenance`).
    """
    path = signature or model.parent / SIGNATURE
    bundle = read(
        path,
        "signature",
        f"The signature {path} is missing.",
        hint="Give it with --signature; its maker has it as model.sig.",
    )
    public = read(
        key, "public key", f"The public key {key} is missing.", hint="Its maker publishes it."
    )
    by = provenance.read_public_key(public)
    resources = provenance.open_bundle(bundle, by)
    note = f"{sha256_digest(bundle)} by key {provenance.hint(by)}"
    found = Vouched(resources, _folder(model, path, resources), note)
    _check(found, model.name, hash_file(model)[0])
    return found


def check_package(vouched: Vouched, model: Path, blobs: Iterable[Blob], folder: str = ".") -> None:
    """Check that all of a variant that came from outside was signed.

    Args:
        vouched: What was signed.
        model: The model's file, beside which its other files lie.
        blobs: The variant's files.
        folder: Where in the package they are.

    Raises:
        TrustError: A file was not, or is another (code `provenance`).
    """
    for blob in blobs:
        if blob.entry.role in _ROLES:
            foreign = blob.entry.role == "onnx_external"
            name = posixpath.relpath(blob.entry.path, folder) if foreign else model.name
            _check(vouched, name, blob.entry.digest)


def _folder(model: Path, signature: Path, resources: Resources) -> str:
    """Return where the model's folder is in the signed one: the signature may lie above it."""
    root = signature.resolve().parent
    home = model.resolve().parent
    if model.name not in resources and home != root and home.is_relative_to(root):
        return f"{home.relative_to(root).as_posix()}/"
    return ""


def _check(vouched: Vouched, name: str, digest: str) -> None:
    signed = vouched.resources.get(f"{vouched.folder}{name}")
    if set(vouched.resources) == {SINGLE_FILE}:  # of one file the name is not signed
        signed = vouched.resources[SINGLE_FILE]
    if signed is None or f"sha256:{signed}" != digest:
        what = "is not among the files that were signed" if signed is None else "was changed since"
        raise TrustError(
            f"{name} {what}; nothing was published.",
            code="provenance",
            hint="Get model and signature again from their maker.",
        )
