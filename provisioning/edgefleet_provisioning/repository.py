"""The catalog as TUF metadata: made, delegated, extended. Pure; time and keys are passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgefleet_shared.errors import TrustError
from edgefleet_shared.package import Manifest, publisher_role, target_path
from edgefleet_shared.trust import (
    AUDIT_PATHS,
    AUDIT_ROLE,
    DIRECTOR_PATHS,
    DIRECTOR_ROLE,
    LIFE_DAYS,
)


class RepositoryKeys(NamedTuple):
    """Who signs what; `root` and `targets` have thresholds, each family has its publisher."""

    root: Sequence[Signer]
    root_threshold: int
    targets: Sequence[Signer]
    targets_threshold: int
    publishers: Mapping[str, Signer]
    snapshot: Signer
    timestamp: Signer
    director: Key
    audit: Key


def file_name(role: str, version: int) -> str:
    """Return the name of a role's file in a repository with consistent snapshots."""
    return f"{version}.{quote(role, '')}.json"


def initial(keys: RepositoryKeys, now: datetime) -> dict[str, bytes]:
    """Return the first repository of a fleet, file name to bytes.

    The director's delegation stands last and its paths match no model, so that no lookup of a
    model ever asks for a `director` file: there is none.
    """
    root = Root(expires=_expires("root", now))
    for role, signers in (
        ("root", keys.root),
        ("targets", keys.targets),
        ("snapshot", [keys.snapshot]),
        ("timestamp", [keys.timestamp]),
    ):
        for signer in signers:
            root.add_key(signer.public_key, role)
    root.roles["root"].threshold = keys.root_threshold
    root.roles["targets"].threshold = keys.targets_threshold
    targets = Targets(expires=_expires("targets", now), delegations=_server_roles(keys))
    for family, publisher in keys.publishers.items():
        _add_family(targets, family, publisher.public_key)
    roles = ["targets", *map(publisher_role, keys.publishers)]
    snapshot = Snapshot(
        expires=_expires("snapshot", now), meta={f"{role}.json": MetaFile(1) for role in roles}
    )
    timestamp = Timestamp(expires=_expires("timestamp", now), snapshot_meta=MetaFile(1))
    files = {
        "1.root.json": _sign(Metadata(root), keys.root),
        "1.targets.json": _sign(Metadata(targets), keys.targets),
        "1.snapshot.json": _sign(Metadata(snapshot), [keys.snapshot]),
        "timestamp.json": _sign(Metadata(timestamp), [keys.timestamp]),
    }
    for family, publisher in keys.publishers.items():
        empty = Metadata(Targets(expires=_expires("publisher", now)))
        files[file_name(publisher_role(family), 1)] = _sign(empty, [publisher])
    return files


def release(
    publisher: Metadata[Targets],
    manifest: Manifest,
    data: bytes,
    signer: Signer,
    now: datetime,
) -> bytes:
    """Return the next version of a publisher role, which also releases `manifest`.

    Args:
        publisher: The current version, verified.
        manifest: What is released.
        data: Its exact bytes.
        signer: The publisher's key.
        now: Aware time of signing.
    """
    path = target_path(manifest.name, manifest.version)
    target = TargetFile.from_data(path, data, ["sha256"])
    target.unrecognized_fields["custom"] = {
        "release_counter": manifest.release_counter,
        "security_floor": manifest.security_floor,
        "hardware": sorted({name for v in manifest.variants for name in v.hardware}),
    }
    signed = publisher.signed
    signed.targets[path] = target
    signed.version += 1
    signed.expires = _expires("publisher", now)
    return _sign(publisher, [signer])


def next_counter(targets: Mapping[str, TargetFile]) -> int:
    """Return the release counter that follows the highest one of a publisher role."""
    counters = [int((t.custom or {}).get("release_counter", 0)) for t in targets.values()]
    return max(counters, default=0) + 1


def security_floor(targets: Mapping[str, TargetFile]) -> int:
    """Return the highest security floor that a publisher role has ever set."""
    floors = [int((t.custom or {}).get("security_floor", 0)) for t in targets.values()]
    return max(floors, default=0)


def _expires(role: str, now: datetime) -> datetime:
    return now.replace(microsecond=0) + timedelta(days=LIFE_DAYS[role])


def _server_roles(keys: RepositoryKeys) -> Delegations:
    """Return the delegations of the roles that sign envelopes and have no file."""
    found = Delegations({}, {})
    for role, key, paths in (
        (AUDIT_ROLE, keys.audit, AUDIT_PATHS),
        (DIRECTOR_ROLE, keys.director, DIRECTOR_PATHS),
    ):
        assert found.roles is not None
        found.roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=list(paths))
        found.keys[key.keyid] = key
    return found


def _add_family(targets: Targets, family: str, key: Key) -> None:
    """Delegate one family, the director staying last."""
    delegations = targets.delegations
    if delegations is None or delegations.roles is None:
        raise TrustError("The targets role has no delegations by name.", code="untrusted")
    role = publisher_role(family)
    director = delegations.roles.pop(DIRECTOR_ROLE, None)
    paths = [f"models/{family}/*/*"]
    delegations.roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=paths)
    if director is not None:
        delegations.roles[DIRECTOR_ROLE] = director
    delegations.keys[key.keyid] = key


def _sign(metadata: Metadata[Any], signers: Sequence[Signer]) -> bytes:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))
