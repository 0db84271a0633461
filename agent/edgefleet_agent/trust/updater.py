"""python-tuf's client, made safe for a device: durable files, a time that is given, tight limits.

It reads a repository through any fetcher: in production a bundle (`edgefleet_shared.bundle`), and
HTTP wherever the class is held against other TUF repositories.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import Root, Signed, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_agent import durable
from edgefleet_shared.distinct import check_distinct_keys
from edgefleet_shared.errors import TrustError

HISTORY = "root_history"
MAX_ROOTS = 1024
"""Rotations that are walked in one refresh: a device may sleep through years of them."""
MAX_ROLES = 32
"""Targets roles that one lookup visits, however they delegate in breadth, depth or circles."""

LIMITS = UpdaterConfig(
    max_root_rotations=MAX_ROOTS,
    max_delegations=MAX_ROLES,
    root_max_length=256 * 1024,  # three ML-DSA-87 keys and six of their signatures, twice over
    timestamp_max_length=16 * 1024,
    snapshot_max_length=1024 * 1024,
    targets_max_length=1024 * 1024,
)


class _TrustedSet(TrustedMetadataSet):
    """Takes no role into what is trusted whose thresholds one key could meet alone."""

    def _add(self, role: str, signed: Signed, delegator: str) -> None:
        try:
            check_distinct_keys(signed)
        except TrustError as error:
            raise exceptions.RepositoryError(str(error)) from error
        super()._add(role, signed, delegator)


class DurableUpdater(Updater):
    """A TUF client whose files survive a power cut and whose time is passed in.

    Args:
        folder: Where verified metadata is kept as `root.json`, `timestamp.json` and so on; it must
            exist, and may be lost at any time.
        fetcher: Gives the repository's files.
        base_url: What the fetcher finds them under.
        root: The pinned first root.
        now: The time by which expiry is judged.

    Raises:
        RepositoryError: The pinned root is no root.
        OSError: The folder cannot be written.
    """

    def __init__(
        self, folder: Path, fetcher: FetcherInterface, base_url: str, root: bytes, now: datetime
    ) -> None:
        durable.make_folder(folder / HISTORY)
        for part in (folder, folder / HISTORY):
            durable.sweep(part)
        super().__init__(str(folder), base_url, fetcher=fetcher, config=LIMITS, bootstrap=root)
        self._trusted_set = _TrustedSet(root, LIMITS.envelope_type)
        # Private in python-tuf 7. A python-tuf that keeps its time elsewhere must not run
        # unnoticed on the device's clock, which may be behind the floor.
        if not isinstance(getattr(self._trusted_set, "reference_time", None), datetime):
            raise exceptions.RepositoryError("python-tuf keeps its reference time elsewhere")
        self._trusted_set.reference_time = now

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if durable.read_bytes(path) != data:
            durable.atomic_write(path, data)

    def _update_root_symlink(self) -> None:
        """Keep `root.json` as a file of its own: a link is torn out before it is set anew."""
        name = f"{self._trusted_set.root.version}.root.json"
        newest = durable.read_bytes(Path(self._dir) / HISTORY / name)
        if newest is not None:
            self._persist_file(str(Path(self._dir) / "root.json"), newest)

    @property
    def root(self) -> Root:
        """The verified root."""
        return self._trusted_set.root

    @property
    def targets(self) -> Targets:
        """The verified top-level targets."""
        return self._trusted_set.targets

    def versions(self) -> tuple[int, int]:
        """Return the versions of timestamp and snapshot."""
        return self._trusted_set.timestamp.version, self._trusted_set.snapshot.version

    def expires(self) -> datetime:
        """Return when the first of the roles that a refresh reads expires."""
        trusted = self._trusted_set
        roles = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
        return min(role.expires for role in roles)

    def role(self, name: str) -> Targets | None:
        """Return a verified targets role that a lookup has loaded."""
        found = self._trusted_set.get(name)
        return found if isinstance(found, Targets) else None
