"""The keys that lie on the server, and what they sign: freshness and assignments."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp
from tuf.api.serialization.json import JSONSerializer

from edgefleet_cloud.trust import chain
from edgefleet_cloud.trust.chain import Repository
from edgefleet_shared.errors import InvalidInputError, TrustError

SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)


class OnlineKeys(NamedTuple):
    """Signers of the roles that must sign unattended."""

    snapshot: CryptoSigner
    timestamp: CryptoSigner
    director: CryptoSigner


def load_keys(folder: Path) -> OnlineKeys:
    """Read the online keys.

    Raises:
        InvalidInputError: One is missing or is not an unencrypted private key.
    """
    return OnlineKeys(*(_load(folder / f"{role}.pem") for role in OnlineKeys._fields))


def check_keys(keys: OnlineKeys, root: Root) -> None:
    """Check that the root names these keys for snapshot and timestamp.

    Raises:
        TrustError: It names others, or demands more than one signature.
    """
    for role, signer in (("snapshot", keys.snapshot), ("timestamp", keys.timestamp)):
        wanted = root.roles[role]
        if wanted.threshold != 1 or signer.public_key.keyid not in wanted.keyids:
            raise TrustError(
                f"Root {root.version} does not let the server's key {role}.pem sign {role} alone.",
                code="online_key",
                hint=f"Put the key that the root names into the keys folder as {role}.pem.",
            )


def refresh(now: Repository, time: datetime) -> tuple[bool, bool]:
    """Return whether snapshot and timestamp should be signed anew: half of their life is over."""
    return (
        now.snapshot.expires - time < SNAPSHOT_LIFE / 2,
        now.timestamp.expires - time < TIMESTAMP_LIFE / 2,
    )


def sign_next(
    now: Repository,
    versions: Mapping[str, int],
    keys: OnlineKeys,
    time: datetime,
    *,
    snapshot: bool,
) -> dict[str, bytes]:
    """Return the files that make new versions current.

    Args:
        now: The repository as it is.
        versions: Role -> version of what is new besides; roots need no mention.
        keys: The online keys.
        time: Aware time of signing.
        snapshot: Whether a new snapshot is wanted, or only a new timestamp over the present one.
    """
    files: dict[str, bytes] = {}
    version = now.snapshot.version
    if snapshot:
        version += 1
        meta = dict(now.snapshot.meta)
        meta |= {f"{role}.json": MetaFile(new) for role, new in versions.items() if role != "root"}
        signed = Snapshot(version, expires=_until(time, SNAPSHOT_LIFE), meta=meta)
        files[chain.file_name("snapshot", version)] = _sign(signed, keys.snapshot)
    timestamp = Timestamp(
        now.timestamp.version + 1,
        expires=_until(time, TIMESTAMP_LIFE),
        snapshot_meta=MetaFile(version),
    )
    files[chain.TIMESTAMP_FILE] = _sign(timestamp, keys.timestamp)
    return files


def _until(time: datetime, life: timedelta) -> datetime:
    return time.replace(microsecond=0) + life


def _sign(signed: Snapshot | Timestamp, signer: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes(JSONSerializer(compact=True))


def _load(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            f"The online key {path} cannot be used: {error}.",
            code="configuration",
            hint="It must be an unencrypted private key in PEM, as `edgefleet init` writes.",
        ) from error
