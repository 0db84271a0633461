"""Offline signing as a ceremony: what is to be signed, by whom, checked from the first root on.

A ceremony file holds the exact bytes of new metadata and the metadata that it follows. Who signs
believes neither: the present metadata is verified from the root that their own fleet folder pins,
and what is new is shown as its difference from that. Pure; `commands` read and write the file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets, VerificationResult
from tuf.api.serialization.json import JSONSerializer

from edgefleet_provisioning import keys
from edgefleet_provisioning.present import Present, read_present, role_of
from edgefleet_provisioning.repository import file_name
from edgefleet_shared import bundle, strict_json
from edgefleet_shared.distinct import check_distinct_keys
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.times import format_time

MAX_BYTES = 4 * 1024 * 1024


class StagedFile(msgspec.Struct, frozen=True):
    """New metadata: its file's name and its TUF JSON, with the signatures that it has so far."""

    name: str
    content: str


class Staged(msgspec.Struct, frozen=True):
    """A ceremony file.

    `present` is a bundle of the metadata that the new one follows: every root, targets, publishers.
    """

    v: Literal[1]
    fleet: str
    title: str
    created: str
    present: str
    files: list[StagedFile]


class Need(NamedTuple):
    """Signatures that one file needs by the keys of one role.

    Attributes:
        file: Its name.
        by: Whose keys, for example `root of version 1`.
        threshold: How many must sign.
        signed: Ids of the keys that have.
        missing: Keys that have not, by id.
    """

    file: str
    by: str
    threshold: int
    signed: frozenset[str]
    missing: Mapping[str, Key]

    @property
    def met(self) -> bool:
        """Whether enough have signed."""
        return len(self.signed) >= self.threshold


class Ceremony:
    """New metadata on its way to enough signatures.

    Args:
        fleet: The fleet's name.
        title: What it is for, in a sentence.
        created: RFC 3339, UTC.
        present: What it follows.
        new: File name to metadata, signed by some or nobody yet.

    Raises:
        TrustError: The new metadata cannot follow the present.
    """

    def __init__(
        self,
        fleet: str,
        title: str,
        created: str,
        present: Present,
        new: Mapping[str, Metadata[Any]],
    ) -> None:
        self.fleet, self.title, self.created = fleet, title, created
        self.present, self.new = present, dict(new)
        for name, metadata in self.new.items():
            self._check(name, metadata)
        for name, metadata in self.new.items():  # what counts for nobody is not carried along
            useful = frozenset[str]().union(*(need.signed for need in self._needs(name)))
            for keyid in metadata.signatures.keys() - useful:
                del metadata.signatures[keyid]

    @classmethod
    def begin(
        cls,
        fleet: str,
        title: str,
        present: Present,
        new: Mapping[str, Metadata[Any]],
        now: datetime,
    ) -> Ceremony:
        """Return a ceremony for metadata that nobody has signed."""
        for metadata in new.values():
            metadata.signatures.clear()
        return cls(fleet, title, format_time(now), present, new)

    @classmethod
    def decode(cls, data: bytes, fleet: str, pinned: bytes) -> Ceremony:
        """Read a ceremony file.

        Args:
            data: The file.
            fleet: The name of one's own fleet.
            pinned: Its first root.

        Raises:
            InvalidInputError: Not a ceremony file.
            TrustError: Of another fleet, or what it holds does not follow from the pinned root.
        """
        staged = strict_json.decode(data, Staged, max_bytes=MAX_BYTES, what="ceremony file")
        if staged.fleet != fleet:
            raise TrustError(
                f"This is for the fleet {staged.fleet[:80]!r}, and yours is {fleet!r}.",
                code="wrong_fleet",
            )
        try:
            files = bundle.decode(base64.b64decode(staged.present, validate=True))
            new = {f.name: Metadata.from_bytes(f.content.encode()) for f in staged.files}
        except (RepositoryError, ValueError) as error:
            raise InvalidInputError(
                f"The ceremony file cannot be read: {error}.", code="malformed"
            ) from error
        return cls(staged.fleet, staged.title, staged.created, read_present(files, pinned), new)

    def encode(self) -> bytes:
        """Return the ceremony file."""
        present = base64.b64encode(bundle.encode(self.present.files)).decode()
        files = [StagedFile(name, data.decode()) for name, data in self.files().items()]
        staged = Staged(1, self.fleet, self.title, self.created, present, files)
        return msgspec.json.format(strict_json.encode(staged), indent=1) + b"\n"

    def files(self) -> dict[str, bytes]:
        """Return the new files by name, with the signatures that they have.

        Whoever signed first, and however copies were put together: the bytes are the same.
        """
        for metadata in self.new.values():
            metadata.signatures = dict(sorted(metadata.signatures.items()))
        return {name: m.to_bytes(JSONSerializer(compact=True)) for name, m in self.new.items()}

    def versions(self) -> dict[str, int]:
        """Return the new version of each role."""
        return {role_of(name): metadata.signed.version for name, metadata in self.new.items()}

    def digest(self, name: str) -> str:
        """Return the digest of the exact bytes of a file that are signed."""
        return "sha256:" + hashlib.sha256(self.new[name].signed_bytes).hexdigest()

    def before(self, name: str) -> Metadata[Any] | None:
        """Return what a new file follows; None for a role's first."""
        return self.present.roles().get(role_of(name))

    def needs(self) -> list[Need]:
        """Return which signatures every file needs, and has."""
        return [need for name in self.new for need in self._needs(name)]

    def due(self) -> dict[str, Key]:
        """Return the keys whose signatures would still help, by id."""
        return {i: key for need in self.needs() if not need.met for i, key in need.missing.items()}

    def attach(self, keyid: str, name: str, signature: str) -> None:
        """Add a signature to a file.

        Raises:
            TrustError: It is none of that key over these bytes (code `metadata_signature`).
        """
        metadata = self.new[name]
        metadata.signatures[keyid] = Signature(keyid, signature)
        if not any(keyid in need.signed for need in self._needs(name)):
            del metadata.signatures[keyid]
            raise TrustError(
                f"The signature of {keyid[:12]} on {name} does not hold, or is not asked for.",
                code="metadata_signature",
            )

    def merge(self, other: Ceremony) -> None:
        """Take over the signatures of another copy of the same ceremony.

        Raises:
            TrustError: It is of something else (code `ceremony_differs`).
        """
        mine = {name: metadata.signed_bytes for name, metadata in self.new.items()}
        theirs = {name: metadata.signed_bytes for name, metadata in other.new.items()}
        if mine != theirs:
            raise TrustError(
                "The two files are not copies of one ceremony.",
                code="ceremony_differs",
                hint="Everybody must sign the same bytes: compare the digests.",
            )
        for name, metadata in other.new.items():
            for keyid, signature in metadata.signatures.items():
                if keyid not in self.new[name].signatures:
                    self.attach(keyid, name, signature.signature)

    def _needs(self, name: str) -> list[Need]:
        metadata, role = self.new[name], role_of(name)
        judges: list[tuple[str, Root | Targets]]
        root = self._new_or_present("root")
        if role == "root":
            old = self.present.root.signed
            judges = [(f"root of version {v.version}", v) for v in (old, root)]
        elif role == "targets":
            judges = [("targets", root)]
        else:
            judges = [(role, self._new_or_present("targets"))]
        return [_need(name, by, judge, role, metadata) for by, judge in judges]

    def _new_or_present(self, role: str) -> Any:
        found = next((m for name, m in self.new.items() if role_of(name) == role), None)
        return (found or getattr(self.present, role)).signed

    def _check(self, name: str, metadata: Metadata[Any]) -> None:
        role, old = role_of(name), self.before(name)
        due = old.signed.version + 1 if old else 1
        kind = Root if role == "root" else Targets
        if role not in {"root", "targets"} and not role.startswith("publisher/"):
            raise TrustError(f"{name[:80]!r} is not for people to sign.", code="metadata_name")
        if not isinstance(metadata.signed, kind) or name != file_name(role, due):
            raise TrustError(
                f"{name[:80]} cannot follow the present metadata: version {due} is next.",
                code="metadata_version",
                hint="Somebody else was quicker: prepare it anew.",
            )
        if metadata.signed.version != due:
            raise TrustError(f"{name} has another version inside.", code="metadata_version")
        for key in _keys_in(metadata.signed):
            keys.check_key_id(key)
        check_distinct_keys(metadata.signed)


def _keys_in(signed: Root | Targets) -> Sequence[Key]:
    if isinstance(signed, Root):
        return list(signed.keys.values())
    return list(signed.delegations.keys.values()) if signed.delegations else []


def _need(name: str, by: str, judge: Root | Targets, role: str, metadata: Metadata[Any]) -> Need:
    try:
        found: VerificationResult = judge.get_verification_result(
            role, metadata.signed_bytes, metadata.signatures
        )
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"Nobody may sign {name}: {error}.", code="not_delegated") from error
    return Need(name, by, found.threshold, frozenset(found.signed), found.unsigned)
