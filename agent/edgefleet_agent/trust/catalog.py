"""The catalog on the device: python-tuf's updater over a bundle, made safe against power cuts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Root, TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig

from edgefleet_agent import durable
from edgefleet_agent.trust.floors import Floors, ModelFloor
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import TrustError
from edgefleet_shared.package import publisher_role

BASE_URL = "bundle:///"

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.ExpiredMetadataError, "metadata_expired"),
    (exceptions.UnsignedMetadataError, "metadata_signature"),
    (exceptions.BadVersionNumberError, "metadata_rollback"),
    (exceptions.LengthOrHashMismatchError, "metadata_mismatch"),
    (exceptions.DownloadError, "metadata_missing"),
)


class DurableUpdater(Updater):
    """python-tuf's updater that fsyncs what it persists and never believes a clock gone back."""

    def __init__(
        self, folder: Path, files: Mapping[str, bytes], root: bytes, now: datetime
    ) -> None:
        super().__init__(
            str(folder),
            BASE_URL,
            fetcher=BundleFetcher(files),
            config=UpdaterConfig(root_max_length=64 * 1024, targets_max_length=1024 * 1024),
            bootstrap=root,
        )
        # Private in python-tuf 7, guarded by a test: the device's clock may be behind the floor.
        self._trusted_set.reference_time = now

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if durable.read_bytes(path) != data:
            durable.atomic_write(path, data)

    def _update_root_symlink(self) -> None:
        """The bootstrap is the pinned root: no link is read, so none is kept."""

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

    def role(self, name: str) -> Targets | None:
        """Return a verified targets role that a lookup has loaded."""
        found = self._trusted_set.get(name)
        return found if isinstance(found, Targets) else None


class Catalog:
    """One verified state of the catalog.

    Args:
        folder: Cache of TUF metadata; may be lost at any time.
        files: A decoded bundle.
        root: The pinned first root.
        now: The device's time, never below its floor.
        floors: What it must not be below.

    Raises:
        TrustError: It does not verify, or is below a floor; codes start with `metadata`.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, bytes], root: bytes, now: datetime, floors: Floors
    ) -> None:
        durable.make_folder(folder)
        durable.sweep(folder)
        self._floors = floors
        try:
            self._updater = DurableUpdater(folder, files, root, now)
            self._updater.refresh()
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error) from error
        self._check_floors()

    @property
    def targets(self) -> Targets:
        """The verified top-level targets role."""
        return self._updater.targets

    def find(self, path: str) -> TargetFile | None:
        """Return the catalog's entry for a target path, found through delegations; or None.

        Raises:
            TrustError: A role on the way does not verify or is below its floor.
        """
        try:
            return self._updater.get_targetinfo(path)
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error) from error

    def raise_floors(self, floors: Floors, models: list[str]) -> Floors:
        """Return floors raised to what is verified here, for the models looked up.

        Raises:
            TrustError: A publisher's role is below its floor (code `metadata_rollback`).
        """
        timestamp, snapshot = self._updater.versions()
        targets = {**floors.targets, "targets": self.targets.version}
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

    def _check_floors(self) -> None:
        root, floors = self._updater.root, self._floors
        _not_below("root", root.version, floors.root)
        timestamp, snapshot = self._updater.versions()
        keys = _keys(root)
        for role, version, floor in (
            ("timestamp", timestamp, floors.timestamp),
            ("snapshot", snapshot, floors.snapshot),
        ):
            # A new root that replaces a stolen online key ends its fast-forwarded versions too.
            replaced = root.version > floors.root and keys[role] != floors.keys.get(role)
            if not replaced:
                _not_below(role, version, floor)
        _not_below("targets", self.targets.version, floors.targets.get("targets", 0))


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
