"""The catalog as a fleet manager keeps it: new metadata taken in, snapshot and timestamp signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from edgefleet_provisioning import keys


class FleetRepository:
    """TUF files by name, over the online side that `edgefleet init` wrote."""

    def __init__(self, online: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in (online / "metadata").iterdir()}
        self._signers = {role: _signer(online, role) for role in ("snapshot", "timestamp")}
        self.version = 1

    def add(self, files: dict[str, bytes]) -> None:
        """Take new role files; the bytes are verified by whoever reads them."""
        previous = Metadata.from_bytes(self.files[f"{self.version}.snapshot.json"])
        for name, data in files.items():
            version, role = unquote(name.removesuffix(".json")).split(".", 1)
            previous.signed.meta[f"{role}.json"] = MetaFile(int(version))
            self.files[name] = data
        self.version += 1
        self._sign(previous, "snapshot", f"{self.version}.snapshot.json")
        timestamp = Metadata.from_bytes(self.files["timestamp.json"])
        timestamp.signed.snapshot_meta = MetaFile(self.version)
        self._sign(timestamp, "timestamp", "timestamp.json")

    def _sign(self, metadata, role: str, name: str) -> None:
        metadata.signed.version = self.version
        metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
        metadata.signatures.clear()
        metadata.sign(self._signers[role])
        self.files[name] = metadata.to_bytes()


def _signer(online: Path, role: str) -> CryptoSigner:
    return keys.decode_private((online / "keys" / f"{role}.pem").read_bytes(), None, role)
