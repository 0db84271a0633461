"""publish: sign a package into the catalog and bring it to the fleet manager."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import NamedTuple

from msgspec import structs
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgefleet_provisioning import repository
from edgefleet_provisioning.api import Api, segment
from edgefleet_provisioning.catalog import Catalog
from edgefleet_provisioning.key_store import KeyStore, StoredKey
from edgefleet_provisioning.package_build import Counters
from edgefleet_provisioning.packaging import Draft
from edgefleet_provisioning.upload import upload
from edgefleet_shared import provenance
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import (
    Manifest,
    decode_manifest,
    encode_manifest,
    publisher_role,
    target_path,
)
from edgefleet_shared.times import parse_time

Report = Callable[[str, int, int], None]
"""Called with a file's path, the bytes that the server has of it, and its size."""


class Release(NamedTuple):
    """A version that is ready to be sent.

    Attributes:
        manifest: What is released.
        data: Its exact bytes.
        metadata: The publisher role that releases it, signed; empty if it is published already.
        bundle: Its Model Signing bundle; empty if the publisher's key is not of a kind for that.
    """

    manifest: Manifest
    data: bytes
    metadata: bytes
    bundle: bytes = b""

    @property
    def digest(self) -> str:
        """The manifest's digest: the name of this version."""
        return sha256_digest(self.data)


def counters(current: Targets, floor: int | None) -> Counters:
    """Return the next release counter and the security floor, which never sinks.

    Raises:
        InvalidInputError: The floor asked for is below an earlier one, or above this version.
    """
    release = repository.next_counter(current.targets)
    lowest = repository.security_floor(current.targets)
    chosen = lowest if floor is None else floor
    if not lowest <= chosen <= release:
        raise InvalidInputError(
            f"The security floor {chosen} cannot be: it is {lowest} now, and this version has "
            f"release counter {release}.",
            code="security_floor",
            hint=f"Give --security-floor {lowest} to {release}, or leave it out.",
        )
    return Counters(release, chosen)


def find_published(api: Api, catalog: Catalog, draft: Draft, floor: int | None) -> Release | None:
    """Return the version if the catalog has it with the same content, None if it has none.

    Raises:
        InvalidInputError: It has that version with other content (code `version_taken`).
        TrustError: The server's manifest is not the one that was signed.
    """
    name, version = draft.about.name, draft.about.version
    target = catalog.target(name, version)
    if target is None:
        return None
    data = api.raw(f"/v1/models/{segment(name)}/versions/{segment(version)}/manifest")
    _check_signed(target, data, f"{name} {version}")
    old = decode_manifest(data)
    place = Counters(old.release_counter, old.security_floor)
    mine = draft.manifest(place, parse_time(old.created))
    # Other versions of the tools make the same package: what counts is the files.
    made_by = {key: old.provenance[key] for key in ("tools",) if key in old.provenance}
    others = {key: value for key, value in mine.provenance.items() if key != "tools"}
    mine = structs.replace(mine, provenance={**others, **made_by})
    if encode_manifest(mine) == data and (floor is None or floor == old.security_floor):
        return Release(old, data, b"")
    raise InvalidInputError(
        f"{name} {version} is published already with {_difference(old, draft)}.",
        code="version_taken",
        hint="A version never changes; publish this one under a new version.",
    )


def sign(
    current: Metadata[Targets], draft: Draft, signer: Signer, place: Counters, now: datetime
) -> Release:
    """Return the version, released by its publisher's signature.

    Args:
        current: The publisher's role as it now is, verified.
        draft: The package.
        signer: The publisher's key.
        place: The version's counters.
        now: Aware time of signing.
    """
    manifest = draft.manifest(place, now)
    data = encode_manifest(manifest)
    bundle = b""
    if provenance.can_sign(signer.public_key):
        subject = f"{manifest.name}-{manifest.version}"
        bundle = provenance.seal(provenance.resources_of(manifest, data), subject, signer)
    metadata = repository.release(current, manifest, data, signer, now)
    return Release(manifest, data, metadata, bundle)


def choose_key(catalog: Catalog, store: KeyStore, model: str) -> StoredKey:
    """Return the key at hand that the fleet's targets role names as the model's publisher.

    Raises:
        TrustError: None at hand is (code `wrong_key`).
    """
    delegations = catalog.top().targets.signed.delegations
    role = (delegations.roles or {}).get(publisher_role(model)) if delegations else None
    keys = store.for_ids(set(role.keyids if role else ()))
    if not keys:
        raise TrustError(
            f"No key at hand may publish {model!r}.",
            code="wrong_key",
            hint="`edgefleet keys list` names the keys of every role, and where they are.",
        )
    return keys[0]


def send(api: Api, draft: Draft, release: Release, report: Report) -> None:
    """Upload what the server lacks, then publish.

    Raises:
        UnreachableError: The server is away; repeating the command goes on where this one stopped.
        RefusedError: The server refuses the version.
    """
    files = {blob.entry.digest: blob for blob in draft.blobs}
    for digest, blob in files.items():
        path, size = blob.entry.path, blob.entry.size
        upload(api, digest, size, blob.source, partial(_tell, report, path, size))
    size = len(release.data)
    upload(api, release.digest, size, release.data, partial(_tell, report, "manifest.json", size))
    body = {
        "version": release.manifest.version,
        "manifest": release.digest,
        "metadata": base64.b64encode(release.metadata).decode(),
    }
    if release.bundle:
        body["provenance"] = digest = sha256_digest(release.bundle)
        size = len(release.bundle)
        upload(api, digest, size, release.bundle, partial(_tell, report, "model.sig", size))
    api.post(f"/v1/models/{segment(release.manifest.name)}/versions", body)


def _tell(report: Report, path: str, size: int, done: int) -> None:
    report(path, done, size)


def _check_signed(target: TargetFile, data: bytes, what: str) -> None:
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise TrustError(
            f"The server's manifest of {what} is not the one that was signed.",
            code="manifest_differs",
            hint=f"Expected is the TUF target {target_path(*what.split())}.",
        ) from error


def _difference(old: Manifest, draft: Draft) -> str:
    """Name what differs, for a person."""
    mine = {blob.entry.path: blob.entry.digest for blob in draft.blobs}
    theirs = {entry.path: entry.digest for v in old.variants for entry in v.files}
    paths = sorted(p for p in {*mine, *theirs} if mine.get(p) != theirs.get(p))
    return f"other files ({', '.join(paths)})" if paths else "other settings"
