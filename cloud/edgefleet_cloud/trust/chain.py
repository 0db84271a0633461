"""A TUF repository as one value: read from files, every signature checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Delegations, Metadata, Root, Snapshot, Targets, Timestamp

from edgefleet_shared.distinct import check_distinct_keys
from edgefleet_shared.errors import TrustError
from edgefleet_shared.identifiers import NAME
from edgefleet_shared.package import publisher_role
from edgefleet_shared.trust import AUDIT_ROLE, DIRECTOR_ROLE, SERVER_ROLES

TIMESTAMP_FILE = "timestamp.json"
VERSIONED = re.compile(r"([1-9][0-9]{0,15})\.([a-z0-9%F-]+)\.json")
_KINDS = {"root": Root, "targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}


class Repository(NamedTuple):
    """A verified repository: what a device that reads it now believes.

    Attributes:
        files: Everything a device may need, by file name: all roots and the newest of the rest.
        root: The newest root.
        targets: The top-level targets.
        publishers: Publisher role -> its metadata.
        snapshot: Versions of targets and publishers, also of those no longer delegated.
        timestamp: Names the snapshot.
    """

    files: Mapping[str, bytes]
    root: Root
    targets: Targets
    publishers: Mapping[str, Targets]
    snapshot: Snapshot
    timestamp: Timestamp


def file_name(role: str, version: int) -> str:
    """Return a role's file name, for example `3.publisher%2Fdigits.json`."""
    return f"{version}.{quote(role, '')}.json"


def split_name(name: str) -> tuple[str, int] | None:
    """Return role and version of a file name; None if it is not a versioned TUF file's."""
    found = VERSIONED.fullmatch(name)
    return (unquote(found[2]), int(found[1])) if found else None


def parse(data: bytes, kind: str, version: int | None, what: str) -> Metadata[Any]:
    """Read metadata of a kind without believing it.

    Args:
        data: The file.
        kind: root, targets, snapshot or timestamp; a publisher's is targets.
        version: What its version must be; None: any.
        what: The file's name, for the message.

    Raises:
        TrustError: It is not that (code `malformed_metadata`), or one key could meet a threshold
            alone (`duplicate_key`).
    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            f"{what} is not TUF metadata: {error}.", code="malformed_metadata"
        ) from error
    if not isinstance(metadata.signed, _KINDS[kind]):
        raise TrustError(f"{what} is not {kind} metadata.", code="malformed_metadata")
    if version is not None and metadata.signed.version != version:
        raise TrustError(
            f"{what} holds version {metadata.signed.version}, not {version}.",
            code="metadata_version",
        )
    check_distinct_keys(metadata.signed)
    return metadata


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Any], what: str) -> None:
    """Check that enough of a role's keys signed.

    Raises:
        TrustError: They did not (code `metadata_signature`).
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            f"{what} is not signed as its delegation demands: {error}.",
            code="metadata_signature",
            hint="Sign it with enough of the keys that `edgefleet trust show` names.",
        ) from error


def read(files: Mapping[str, bytes]) -> Repository:
    """Return the repository in these files; files that it does not name are left out.

    Expiry is not looked at: what has expired can be replaced, and only devices must refuse it.

    Raises:
        TrustError: A file is missing, malformed or not signed as it must be.
    """
    chosen: dict[str, bytes] = {}
    root = _read_roots(files, chosen)
    timestamp = _read_one(files, chosen, TIMESTAMP_FILE, "timestamp", root, None)
    version = timestamp.snapshot_meta.version
    snapshot = _read_one(files, chosen, file_name("snapshot", version), "snapshot", root, version)
    if "targets.json" not in snapshot.meta:
        raise TrustError("The snapshot does not name targets.json.", code="metadata_missing")
    version = snapshot.meta["targets.json"].version
    targets = _read_one(files, chosen, file_name("targets", version), "targets", root, version)
    publishers = {}
    for role in publisher_roles(targets):
        if meta := snapshot.meta.get(f"{role}.json"):
            name = file_name(role, meta.version)
            metadata = parse(_file(files, name), "targets", meta.version, name)
            verify(targets, role, metadata, name)
            publishers[role], chosen[name] = metadata.signed, files[name]
    return Repository(chosen, root, targets, publishers, snapshot, timestamp)


def publisher_roles(targets: Targets) -> list[str]:
    """Return the publisher roles that the targets role delegates to.

    Raises:
        TrustError: It delegates in a way that edgefleet does not (code `foreign_delegation`).
    """
    roles = _named(targets.delegations)
    for name, paths in roles.items():
        family = name.removeprefix("publisher/")
        if name in SERVER_ROLES:
            continue
        if name != publisher_role(family) or not NAME.fullmatch(family):
            raise TrustError(f"Targets delegate to {name[:80]!r}.", code="foreign_delegation")
        if paths != [f"models/{family}/*/*"]:
            raise TrustError(f"{name} may sign {paths}.", code="foreign_delegation")
    return [name for name in roles if name not in SERVER_ROLES]


def director_keys(targets: Targets) -> frozenset[str]:
    """Return the ids of the keys that may sign assignments."""
    return _server_keys(targets, DIRECTOR_ROLE)


def audit_keys(targets: Targets) -> frozenset[str]:
    """Return the ids of the keys that may sign statements about the log; perhaps none."""
    return _server_keys(targets, AUDIT_ROLE)


def _server_keys(targets: Targets, name: str) -> frozenset[str]:
    roles = targets.delegations.roles if targets.delegations else None
    role = (roles or {}).get(name)
    return frozenset(role.keyids if role else ())


def _named(delegations: Delegations | None) -> dict[str, list[str] | None]:
    if delegations is None:
        return {}
    if delegations.roles is None:
        raise TrustError("Targets delegate to hashed bins.", code="foreign_delegation")
    return {name: role.paths for name, role in delegations.roles.items()}


def _read_roots(files: Mapping[str, bytes], chosen: dict[str, bytes]) -> Root:
    version = 1
    trusted: Root | None = None
    while version == 1 or file_name("root", version) in files:
        name = file_name("root", version)
        metadata = parse(_file(files, name), "root", version, name)
        verify(trusted or metadata.signed, "root", metadata, name)
        verify(metadata.signed, "root", metadata, name)
        trusted, chosen[name] = metadata.signed, files[name]
        version += 1
    assert trusted is not None
    return trusted


def _read_one(
    files: Mapping[str, bytes],
    chosen: dict[str, bytes],
    name: str,
    role: str,
    root: Root,
    version: int | None,
) -> Any:
    metadata = parse(_file(files, name), role, version, name)
    verify(root, role, metadata, name)
    chosen[name] = files[name]
    return metadata.signed


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    try:
        return files[name]
    except KeyError:
        raise TrustError(
            f"The metadata file {name} is missing.",
            code="metadata_missing",
            hint="Restore the metadata folder; `edgefleet init` makes a first one.",
        ) from None
