"""The metadata that people signed, as it stands now, verified from the first root on. Pure.

Expiry is not looked at: what has expired is what somebody is about to renew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from edgefleet_provisioning.repository import file_name
from edgefleet_shared.errors import TrustError
from edgefleet_shared.trust import SERVER_ROLES


class Present(NamedTuple):
    """Metadata that people signed, as it stands, verified from the first root; expiry aside."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    publishers: Mapping[str, Metadata[Targets]]
    files: Mapping[str, bytes]

    def roles(self) -> dict[str, Metadata[Any]]:
        """Return the metadata of every role by its name."""
        return {"root": self.root, "targets": self.targets, **self.publishers}

    def versions(self) -> dict[str, int]:
        """Return the version of every role by its name."""
        return {role: metadata.signed.version for role, metadata in self.roles().items()}


def role_of(name: str) -> str:
    """Return the role that a file name says, for example `publisher/digits`."""
    return unquote(name.removesuffix(".json").partition(".")[2])


def read_present(files: Mapping[str, bytes], pinned: bytes) -> Present:
    """Return the metadata in these files, verified from the pinned root on.

    Raises:
        TrustError: It does not hold (code `untrusted_catalog`).
    """
    try:
        root: Metadata[Root] = Metadata.from_bytes(pinned)
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        while data := files.get(file_name("root", root.signed.version + 1)):
            root = _follow(root, Metadata.from_bytes(data))
        targets = _newest(files, "targets", root.signed)
        publishers = {
            role: _newest(files, role, targets.signed)
            for role in _delegated(targets.signed)
            if role not in SERVER_ROLES
        }
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            f"The present metadata does not hold: {error}.",
            code="untrusted_catalog",
            hint="Is this the right fleet folder? Nothing was signed.",
        ) from error
    return Present(root, targets, publishers, dict(files))


def _follow(root: Metadata[Root], following: Metadata[Root]) -> Metadata[Root]:
    for judge in (root.signed, following.signed):
        judge.verify_delegate("root", following.signed_bytes, following.signatures)
    if following.signed.version != root.signed.version + 1:
        raise RepositoryError("a root has another version than its name")
    return following


def _delegated(targets: Targets) -> list[str]:
    roles = targets.delegations.roles if targets.delegations else None
    return list(roles or ())


def _newest(files: Mapping[str, bytes], role: str, judge: Root | Targets) -> Metadata[Targets]:
    versions = [int(name.partition(".")[0]) for name in files if role_of(name) == role]
    name = file_name(role, max(versions, default=0))
    if name not in files:
        raise RepositoryError(f"there is no {role} metadata")
    metadata: Metadata[Targets] = Metadata.from_bytes(files[name])
    judge.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    return metadata
