"""The catalog on the device: one verified state of a TUF repository, never below the floors."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_agent import durable
from edgefleet_agent.trust.floors import Floors, ModelFloor
from edgefleet_agent.trust.updater import DurableUpdater
from edgefleet_shared.errors import EdgeFleetError, TrustError
from edgefleet_shared.package import publisher_role

BUNDLE_URL = "bundle:///"

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.ExpiredMetadataError, "metadata_expired"),
    (exceptions.UnsignedMetadataError, "metadata_signature"),
    (exceptions.BadVersionNumberError, "metadata_rollback"),
    (exceptions.LengthOrHashMismatchError, "metadata_mismatch"),
    (exceptions.DownloadLengthMismatchError, "metadata_too_large"),
    (exceptions.DownloadError, "metadata_missing"),
)


class Catalog:
    """A TUF repository, refreshed and held against the floors.

    Args:
        folder: Cache of TUF metadata; may be lost at any time.
        fetcher: Where the repository's files come from: a bundle, or HTTP.
        root: The pinned first root.
        now: The device's time, never below its floor.
        floors: What it must not be below.
        url: What the fetcher finds the files under.

    Raises:
        TrustError: It does not verify, or is below a floor; codes start with `metadata`.
    """

    def __init__(
        self,
        folder: Path,
        fetcher: FetcherInterface,
        root: bytes,
        now: datetime,
        floors: Floors,
        url: str = BUNDLE_URL,
    ) -> None:
        self._floors = floors
        try:
            self._updater = DurableUpdater(folder, fetcher, url, root, now)
            self._updater.refresh()
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error) from error
        self._check_floors()

    @property
    def targets(self) -> Targets:
        """The verified top-level targets role."""
        return self._updater.targets

    @property
    def expires(self) -> datetime:
        """When the first of root, timestamp, snapshot and targets expires."""
        return self._updater.expires()

    def find(self, path: str) -> TargetFile | None:
        """Return the catalog's entry for a target path, found through delegations; or None.

        Raises:
            TrustError: A role on the way does not verify or is below its floor.
        """
        try:
            return self._updater.get_targetinfo(path)
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error) from error

    def find_release(self, model: str, path: str) -> TargetFile | None:
        """Return the entry for a path that the model's own publisher role signed; or None.

        Nobody else speaks for a model: not another role whose paths match, not a role that the
        publisher delegates to, and not targets itself, whose floors nobody keeps.

        Raises:
            TrustError: A role on the way does not verify or is below its floor.
        """
        found = self.find(path)
        role = self._updater.role(publisher_role(model))
        own = role.targets.get(path) if role else None
        return found if found is not None and found is own else None

    def raise_floors(self, floors: Floors, models: list[str]) -> Floors:
        """Return floors raised to what is verified here, for the models looked up.

        Raises:
            TrustError: A publisher's role is below its floor (code `metadata_rollback`).
        """
        timestamp, snapshot = self._updater.versions()
        # A new snapshot key ends what was recorded under the old one (TUF 5.3.11).
        kept = {} if self._replaced("snapshot", floors) else floors.targets
        targets = {**kept, "targets": self.targets.version}
        known = dict(floors.models)
        for name in models:
            role = self._updater.role(publisher_role(name))
            if role is None:
                continue
            _not_below(publisher_role(name), role.version, targets.get(publisher_role(name), 0))
            targets[publisher_role(name)] = role.version
            known[name] = ModelFloor(
                known.get(name, ModelFloor()).release_counter,
                max(floors.model(name).security_floor, _security_floor(role, name)),
            )
        return msgspec.structs.replace(
            floors,
            root=self._updater.root.version,
            timestamp=timestamp,
            snapshot=snapshot,
            targets=targets,
            keys=_keys(self._updater.root),
            models=known,
        )

    def _replaced(self, role: str, floors: Floors) -> bool:
        """Tell whether a root that is new to the device names other keys for a role.

        That ends the versions, however high, to which a stolen key has fast-forwarded.
        """
        root, known = self._updater.root, floors.keys.get(role)
        # Not known before the first refresh: the minimum of the enrolment must not fall by that.
        return root.version > floors.root and known is not None and _keys(root)[role] != known

    def _check_floors(self) -> None:
        floors = self._floors
        _not_below("root", self._updater.root.version, floors.root)
        timestamp, snapshot = self._updater.versions()
        if not self._replaced("timestamp", floors):
            _not_below("timestamp", timestamp, floors.timestamp)
        if not self._replaced("snapshot", floors):
            _not_below("snapshot", snapshot, floors.snapshot)
            _not_below("targets", self.targets.version, floors.targets.get("targets", 0))


def cached_expiry(folder: Path) -> datetime | None:
    """Return when the timestamp that was verified last expires; None if none is kept."""
    try:
        data = durable.read_bytes(folder / "timestamp.json")
        return Metadata[Timestamp].from_bytes(data).signed.expires if data else None
    except (exceptions.RepositoryError, EdgeFleetError):
        return None  # torn: the next document tells


def _keys(root: Root) -> dict[str, list[str]]:
    return {role: sorted(root.roles[role].keyids) for role in ("timestamp", "snapshot")}


def _security_floor(role: Targets, model: str) -> int:
    """Return the highest floor that any release of the model sets: releases are only added."""
    prefix = f"models/{model}/"
    found = [
        (target.custom or {}).get("security_floor", 0)
        for path, target in role.targets.items()
        if path.startswith(prefix)
    ]
    return max((floor for floor in found if type(floor) is int), default=0)


def _not_below(role: str, version: int, floor: int) -> None:
    if version < floor:
        raise TrustError(
            f"The {role} metadata has version {version}; {floor} was already seen.",
            code="metadata_rollback",
        )


def _translate(error: Exception) -> TrustError:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "metadata")
    return TrustError(f"The catalog does not verify: {error}.", code=code)
