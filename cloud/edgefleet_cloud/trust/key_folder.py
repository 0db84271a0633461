"""The online keys on disk: several files a role, of which the owners' metadata names one.

`director.pem` and `director.<anything>.pem` are keys of the director. A rotation puts the next key
beside the present one; the server changes over when signed metadata names it, without a restart.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Targets

from edgefleet_cloud import durable
from edgefleet_cloud.trust import chain
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError, UnavailableError

NEEDED = ("snapshot", "timestamp", "director")
ROLES = (*NEEDED, "audit")
MAX_FILES = 16  # of one role; who forgets to remove old keys is told so

_log = logging.getLogger(__name__)


class OnlineKeys(NamedTuple):
    """Signers of the roles that must sign unattended.

    There is no director where its key is not here, and no audit where the fleet has no such role.
    """

    snapshot: CryptoSigner
    timestamp: CryptoSigner
    director: CryptoSigner | None
    audit: CryptoSigner | None = None


class StoredKey(NamedTuple):
    """A key of the folder: its role, its file's name and its signer."""

    role: str
    file: str
    signer: CryptoSigner

    @property
    def keyid(self) -> str:
        """The key's id in TUF metadata."""
        return str(self.signer.public_key.keyid)


class KeyFolder:
    """Reads and makes online keys.

    Args:
        path: `keys_dir`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[StoredKey]:
        """Return every key that can be read; one that cannot is named in the log.

        Raises:
            InvalidInputError: A role has none that can be read (code `configuration`).
        """
        found = []
        for role in ROLES:
            keys, problem = self._of(role)
            if not keys and role in NEEDED:
                raise problem or InvalidInputError(
                    f"The online key {self._path / role}.pem is missing.",
                    code="configuration",
                    hint="`edgefleet init` writes it; keys_dir in cloud.toml says where it is.",
                )
            if problem:
                _log.warning("%s", problem)
            found += keys
        return found

    def choose(self, root: Root, targets: Targets) -> OnlineKeys:
        """Return the keys that the owners' metadata names.

        Raises:
            InvalidInputError: A role has no key that can be read.
            TrustError: None that is here may sign snapshot or timestamp (code `online_key`).
        """
        stored = self.all()
        chosen: dict[str, CryptoSigner] = {}
        for role in ("snapshot", "timestamp"):
            wanted = root.roles[role]
            signer = _named(stored, role, frozenset(wanted.keyids))
            if wanted.threshold != 1 or signer is None:
                raise TrustError(
                    f"Root {root.version} does not let a key of the server sign {role} alone.",
                    code="online_key",
                    hint=f"`edgefleet keys rotate {role}` makes one here and has it named.",
                )
            chosen[role] = signer
        director = _named(stored, "director", chain.director_keys(targets))
        audit = _named(stored, "audit", chain.audit_keys(targets))
        return OnlineKeys(chosen["snapshot"], chosen["timestamp"], director, audit)

    def make(self, role: str) -> StoredKey:
        """Make one more key of a role; it signs nothing until metadata names it.

        Raises:
            InvalidInputError: Not an online role, or it has too many keys (`too_many_keys`).
            UnavailableError: It cannot be written.
        """
        if role not in ROLES:
            raise InvalidInputError(
                f"{role[:80]!r} is not a role whose key lies on the server.",
                code="invalid_role",
                hint=f"Those are {', '.join(ROLES)}.",
            )
        if len(self._files(role)) >= MAX_FILES:
            raise InvalidInputError(
                f"There are {MAX_FILES} keys of {role} already.",
                code="too_many_keys",
                hint="Remove those from keys_dir that `edgefleet keys list` calls unused.",
            )
        signer = CryptoSigner.generate_ecdsa()
        name = f"{role}.{signer.public_key.keyid[:12]}.pem"
        try:
            durable.write(self._path / name, signer.private_bytes, 0o600)
        except OSError as error:
            raise UnavailableError(
                f"The key cannot be stored: {error.strerror}.",
                code="storage",
                hint="The server must be able to write into keys_dir.",
            ) from error
        return StoredKey(role, name, signer)

    def _of(self, role: str) -> tuple[list[StoredKey], EdgeFleetError | None]:
        keys, problem = [], None
        for path in self._files(role):
            try:
                keys.append(StoredKey(role, path.name, _load(path)))
            except InvalidInputError as error:  # half copied, perhaps: the others count
                problem = error
        return keys, problem

    def _files(self, role: str) -> list[Path]:
        return sorted(
            path for path in self._path.glob(f"{role}*.pem") if path.name[len(role)] == "."
        )


def _named(stored: list[StoredKey], role: str, keyids: frozenset[str]) -> CryptoSigner | None:
    return next((key.signer for key in stored if key.role == role and key.keyid in keyids), None)


def _load(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"The online key {path} cannot be used: {error}.",
            code="configuration",
            hint="It must be an unencrypted private key in PEM, as `edgefleet init` writes.",
        ) from error
