"""Which newly signed metadata may follow a repository. Pure; time is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from edgefleet_cloud.trust import chain
from edgefleet_cloud.trust.chain import Repository
from edgefleet_shared.errors import InvalidInputError, TrustError


class Entry(NamedTuple):
    """What a release's entry in the catalog must say, by its manifest."""

    path: str
    digest: str
    size: int
    release_counter: int
    security_floor: int
    hardware: frozenset[str]


class Accepted(NamedTuple):
    """What may come in: role -> new version, and the root and targets that then hold."""

    versions: Mapping[str, int]
    root: Root
    targets: Targets


def check_incoming(
    now: Repository, incoming: Mapping[str, bytes], entry: Entry | None, time: datetime
) -> Accepted:
    """Check files that owners and publishers signed.

    The repository that follows must stand by itself: a key that changes needs every file that it
    signs in the same step.

    Args:
        now: The repository as it is.
        incoming: File name -> bytes.
        entry: The one release that must be added; None: none may be.
        time: Aware; what has expired by now is refused.

    Raises:
        InvalidInputError: A file that owners do not sign, or none at all.
        TrustError: A version that is not the next, signatures that are not enough, an expired
            file, or a publisher's file that changes or forgets what was released.
    """
    versions = _names(incoming)
    root = _check_roots(now.root, versions, incoming, time)
    targets = now.targets
    if version := versions.get("targets"):
        name = chain.file_name("targets", version)
        metadata = _next(incoming[name], name, now.targets.version + 1, time, kind="targets")
        chain.verify(root, "targets", metadata, name)
        targets = metadata.signed
    delegated = chain.publisher_roles(targets)
    for role, version in versions.items():
        if role not in {"root", "targets"}:
            name = chain.file_name(role, version)
            if role not in delegated:
                raise TrustError(
                    f"{name}: targets do not delegate to {role}.",
                    code="not_delegated",
                    hint="`edgefleet trust delegate` adds a family, with the targets keys.",
                )
            meta = now.snapshot.meta.get(f"{role}.json")
            due = meta.version + 1 if meta else 1
            metadata = _next(incoming[name], name, due, time, kind="targets")
            chain.verify(targets, role, metadata, name)
            _check_additions(now.publishers.get(role), metadata.signed, name, entry)
    return Accepted(versions, root, targets)


def check_entry(target: TargetFile | None, entry: Entry) -> None:
    """Check that the catalog says of a release what its manifest says.

    Raises:
        TrustError: There is no such entry (code `not_released`) or they disagree (`disagree`).
    """
    if target is None:
        raise TrustError(f"The metadata does not release {entry.path}.", code="not_released")
    custom = target.custom if isinstance(target.custom, dict) else {}
    hardware = custom.get("hardware")
    said = (
        "sha256:" + target.hashes.get("sha256", ""),
        target.length,
        custom.get("release_counter"),
        custom.get("security_floor"),
        frozenset(hardware if isinstance(hardware, list) else ()),
    )
    if said != entry[1:]:
        raise TrustError(
            f"The metadata and the manifest disagree about {entry.path}.",
            code="disagree",
            hint="Sign digest, length, counters and hardware of this very manifest.",
        )


def _names(incoming: Mapping[str, bytes]) -> dict[str, int]:
    """Return role -> newest version among the names; only roots may come in several versions."""
    versions: dict[str, int] = {}
    for name in incoming:
        role, version = chain.split_name(name) or ("", 0)
        if role not in {"root", "targets"} and not role.startswith("publisher/"):
            raise InvalidInputError(
                f"{name[:100]!r} is not a file that an owner signs.",
                code="metadata_name",
                hint="Send N.root.json, N.targets.json or N.publisher%2F<model>.json.",
            )
        if role in versions and role != "root":
            raise InvalidInputError(f"Two versions of {role} came.", code="metadata_name")
        versions[role] = max(version, versions.get(role, 0))
    if not versions:
        raise InvalidInputError("No metadata came.", code="metadata_name")
    return versions


def _check_roots(
    trusted: Root, versions: Mapping[str, int], incoming: Mapping[str, bytes], time: datetime
) -> Root:
    count = sum((chain.split_name(name) or ("",))[0] == "root" for name in incoming)
    for _ in range(count):
        version = trusted.version + 1
        name = chain.file_name("root", version)
        if name not in incoming:
            raise TrustError(
                f"The next root is {name}; it did not come.",
                code="metadata_version",
                hint="Fetch the present root, and sign the one that follows.",
            )
        last = version == versions["root"]
        metadata = _next(incoming[name], name, version, time if last else None, kind="root")
        chain.verify(trusted, "root", metadata, name)
        chain.verify(metadata.signed, "root", metadata, name)
        trusted = metadata.signed
    return trusted


def _next(
    data: bytes, name: str, version: int, time: datetime | None, *, kind: str
) -> Metadata[Any]:
    _, named = chain.split_name(name) or ("", 0)
    if named != version:
        raise TrustError(
            f"{name} came, and version {version} is next.",
            code="metadata_version",
            hint="Somebody else was quicker: fetch the present metadata and sign again.",
        )
    metadata = chain.parse(data, kind, version, name)
    if time and metadata.signed.is_expired(time):
        raise TrustError(f"{name} has expired already.", code="metadata_expired")
    return metadata


def _check_additions(
    before: Targets | None, after: Targets, name: str, entry: Entry | None
) -> None:
    """A publisher adds; what was released stays exactly as it was signed."""
    if after.delegations is not None:
        raise TrustError(f"{name} delegates further.", code="foreign_delegation")
    old = before.targets if before else {}
    for path, target in old.items():
        if after.targets.get(path) != target:
            raise TrustError(
                f"{name} changes or forgets {path}, which was released.",
                code="release_changed",
                hint="A release never changes: publish another version.",
            )
    for path in sorted(set(after.targets) - set(old)):
        if entry is None or path != entry.path:
            raise TrustError(
                f"{name} adds {path[:200]!r}, which is not what is published here.",
                code="unexpected_release",
                hint="Each version comes by POST /v1/models/<model>/versions, one at a time.",
            )
    if entry:
        check_entry(after.targets.get(entry.path), entry)
