"""What the keys on the server sign by themselves: snapshot and timestamp. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp
from tuf.api.serialization.json import JSONSerializer

from edgefleet_cloud.trust import chain
from edgefleet_cloud.trust.chain import Repository
from edgefleet_cloud.trust.key_folder import OnlineKeys

SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)


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
        version = _next_version(now.snapshot, SNAPSHOT_LIFE, time)
        meta = dict(now.snapshot.meta)
        meta |= {f"{role}.json": MetaFile(new) for role, new in versions.items() if role != "root"}
        signed = Snapshot(version, expires=_until(time, SNAPSHOT_LIFE), meta=meta)
        files[chain.file_name("snapshot", version)] = _sign(signed, keys.snapshot)
    timestamp = Timestamp(
        _next_version(now.timestamp, TIMESTAMP_LIFE, time),
        expires=_until(time, TIMESTAMP_LIFE),
        snapshot_meta=MetaFile(version),
    )
    files[chain.TIMESTAMP_FILE] = _sign(timestamp, keys.timestamp)
    return files


def _next_version(last: Snapshot | Timestamp, life: timedelta, time: datetime) -> int:
    """Return a version above those that may have been signed since `last` was.

    Versions grow by the minutes that have passed. A server that was restored from a copy is ahead
    of what devices saw from it in the meantime, unless it signed more than once a minute; else
    they would refuse it as a rollback.
    """
    minutes = int((time - (last.expires - life)) / timedelta(minutes=1))
    return last.version + max(1, minutes)


def _until(time: datetime, life: timedelta) -> datetime:
    return time.replace(microsecond=0) + life


def _sign(signed: Snapshot | Timestamp, signer: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes(JSONSerializer(compact=True))
