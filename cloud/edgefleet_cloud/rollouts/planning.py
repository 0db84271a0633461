"""Target: which devices a rollout is for, in which waves, at what cost. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.groups.service import Groups
from edgefleet_cloud.ports import Blobs, Release, Releases
from edgefleet_cloud.rollouts import repository
from edgefleet_cloud.rollouts.schemas import NewRollout
from edgefleet_cloud.rollouts.waves import WaveSpec, split
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import (
    EVERY_HARDWARE,
    MANIFEST_MAX_BYTES,
    Manifest,
    decode_manifest,
)

EVERY_DEVICE = "id like '*'"


@dataclass(frozen=True)
class Conflict:
    """Something that an operator should know before the start.

    `kind`: not_enrolled (left out), incompatible (no variant for its hardware), supersedes
    (an unfinished rollout loses the device), current (it is meant to run this version already).
    """

    device: str
    kind: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What a rollout would do.

    Attributes:
        release: The version.
        members: Device ids of each wave, in order.
        conflicts: What stands in the way or is lost.
        bytes_each: Download of each device in bytes, for the largest variant of its hardware; a
            device that holds some of the blobs needs less.
        supersedes: Ids of rollouts that lose devices.
    """

    release: Release
    members: Sequence[tuple[str, ...]]
    conflicts: Sequence[Conflict]
    bytes_each: Mapping[str, int]
    supersedes: Sequence[str]


class Planner:
    """Plans rollouts.

    Args:
        devices: Finds devices by selector.
        groups: Finds devices by group.
        releases: Knows what is published.
        blobs: Holds the manifests.
    """

    def __init__(self, devices: Devices, groups: Groups, releases: Releases, blobs: Blobs) -> None:
        self._devices = devices
        self._groups = groups
        self._releases = releases
        self._blobs = blobs

    def plan(self, session: Session, wish: NewRollout, seed: str, scope: Scope = None) -> Plan:
        """Return the plan of a rollout.

        Args:
            session: Where to look.
            wish: The request.
            seed: Freezes who is in which wave.
            scope: Devices outside of it are not chosen, and are unknown where they are named.

        Raises:
            InvalidInputError: code `unknown_version`, `unknown_group`, `unknown_device`,
                `no_devices`, `not_enrolled`, `waves` or `invalid_filter`.
        """
        release = self._release(session, wish)
        chosen = self._chosen(session, wish, scope)
        ready = {row.id: row for row in chosen if row.state == ENROLLED}
        conflicts = [
            Conflict(row.id, "not_enrolled", f"{row.id} has not enrolled and is left out.")
            for row in chosen
            if row.id not in ready
        ]
        if not ready:
            raise _none(wish, conflicts)
        specs = [
            WaveSpec(
                name=wave.name,
                devices=tuple(wave.devices) if wave.devices is not None else None,
                count=wave.count,
                percent=wave.percent,
                rest=wave.rest,
            )
            for wave in wish.waves
        ]
        members = split(specs, {row.id: row.hardware for row in ready.values()}, seed)
        manifest = self._manifest(release)
        sizes = {row.id: _download(manifest, row) for row in ready.values()}
        losing = repository.open_deployments(session, release.model, ready)
        conflicts += _incompatible(release, ready.values())
        conflicts += [
            Conflict(
                row.device,
                "supersedes",
                f"{row.device} leaves rollout {row.rollout} of {row.version}, where it is "
                f"{row.state}.",
            )
            for row in losing
        ]
        conflicts += self._current(session, release, ready.values())
        return Plan(release, members, conflicts, sizes, sorted({row.rollout for row in losing}))

    def _release(self, session: Session, wish: NewRollout) -> Release:
        try:
            return self._releases.find(session, wish.model, wish.version)
        except NotFoundError as error:
            raise InvalidInputError(
                f"{wish.model} {wish.version} is not published.",
                code="unknown_version",
                hint=f"GET /v1/models/{wish.model}/versions lists what is.",
            ) from error

    def _chosen(self, session: Session, wish: NewRollout, scope: Scope) -> Sequence[DeviceRow]:
        if wish.group is not None:
            try:
                return self._groups.members(session, wish.group, scope)
            except NotFoundError as error:
                raise InvalidInputError(
                    error.message, code="unknown_group", hint=error.hint
                ) from error
        if wish.selector is not None:
            return self._devices.matching(session, wish.selector, scope)
        if named := wish.named():
            return self._named(session, named, scope)
        return self._devices.matching(session, EVERY_DEVICE, scope)

    def _named(self, session: Session, named: Sequence[str], scope: Scope) -> Sequence[DeviceRow]:
        found, missing = [], []
        for device in named:
            try:
                found.append(self._devices.get(session, device, scope))
            except NotFoundError as error:
                missing.append(error)
        if missing:
            many = f"{len(missing)} of the {len(named)} named devices are not there. "
            raise InvalidInputError(
                (many if len(named) > 1 else "") + missing[0].message,
                code="unknown_device",
                hint="GET /v1/devices lists them, as far as your scope reaches.",
            )
        for row in found:
            if row.state != ENROLLED:
                raise InvalidInputError(
                    f"{row.id} is {row.state}, so it cannot be given a model.",
                    code="not_enrolled",
                    hint=f"POST /v1/devices/{row.id}/tickets lets it enrol.",
                )
        return found

    def _manifest(self, release: Release) -> Manifest:
        with self._blobs.open(release.manifest) as chunks:
            data = b"".join(chunks)
        assert len(data) <= MANIFEST_MAX_BYTES
        return decode_manifest(data)

    def _current(
        self, session: Session, release: Release, rows: Iterable[DeviceRow]
    ) -> list[Conflict]:
        found = []
        for row in rows:
            desired = repository.desired(session, row.id).get(release.model)
            if desired and desired.mode == "run" and desired.manifest == release.manifest:
                message = f"{row.id} should run {release.version} already."
                found.append(Conflict(row.id, "current", message))
        return found


def _download(manifest: Manifest, device: DeviceRow) -> int:
    fitting = [
        variant
        for variant in manifest.variants
        if device.hardware in variant.hardware or EVERY_HARDWARE in variant.hardware
    ]
    return max((sum(entry.size for entry in variant.files) for variant in fitting), default=0)


def _incompatible(release: Release, rows: Iterable[DeviceRow]) -> list[Conflict]:
    if EVERY_HARDWARE in release.hardware:
        return []
    return [
        Conflict(
            row.id,
            "incompatible",
            f"{row.id} is {row.hardware}; {release.version} has variants for "
            f"{', '.join(sorted(release.hardware))}.",
        )
        for row in rows
        if row.hardware not in release.hardware
    ]


def _none(wish: NewRollout, conflicts: Sequence[Conflict]) -> InvalidInputError:
    where = f"selector {wish.selector or EVERY_DEVICE!r}"
    if wish.group is not None:
        where = f"group {wish.group!r}"
    if conflicts:
        return InvalidInputError(
            f"None of the {len(conflicts)} devices of {where} has enrolled.",
            code="no_devices",
            hint="POST /v1/devices/{id}/tickets lets a device enrol.",
        )
    return InvalidInputError(
        f"No device matches {where}.",
        code="no_devices",
        hint="GET /v1/devices?filter=... shows what a selector finds.",
    )
