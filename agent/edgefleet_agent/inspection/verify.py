"""`edgefleet-agent verify`: every signature and every byte on this device, checked again from disk.

It changes nothing, asks nobody, and trusts neither agentd nor its caches: the chain is walked from
the pinned root to the bytes of each blob.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from edgefleet_agent import durable
from edgefleet_agent.config import Config
from edgefleet_agent.identity import ENROLLMENT_MAX_BYTES, Enrollment
from edgefleet_agent.inspection.output import say
from edgefleet_agent.journal import VersionRef, read_document
from edgefleet_agent.store import blob_path, hash_file
from edgefleet_agent.trust.catalog import Catalog
from edgefleet_agent.trust.evidence import open_document
from edgefleet_agent.trust.floors import Floors, read_floors
from edgefleet_shared import strict_json
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.install import why_not_serve
from edgefleet_shared.package import target_path
from edgefleet_shared.times import parse_time
from edgefleet_shared.trust import read_release, unseal_assignment

Level = Literal["ok", "warning", "error"]


class Check(NamedTuple):
    """One thing that was looked at: what, which, how it is, a stable code if not well, and why."""

    what: str
    which: str
    level: Level
    code: str = ""
    detail: str = ""


def run(config: Config, options: argparse.Namespace) -> int:
    """Check, line by line; return 1 if anything is in error.

    Raises:
        InvalidInputError: The device is not enrolled, or its journal is damaged.
    """
    checks = []
    for check in _checks(config):
        checks.append(check)
        if not options.json:
            sys.stdout.write(_line(check) + "\n")
            sys.stdout.flush()  # blobs take their time
    bad = sum(check.level == "error" for check in checks)
    shown = {"ok": not bad, "checks": [check._asdict() for check in checks]}
    text = (
        f"{len(checks)} checks, {bad} in error" if bad else f"{len(checks)} checks, none in error"
    )
    say(shown, [text], as_json=options.json)
    return 1 if bad else 0


def _line(check: Check) -> str:
    why = f": {check.detail} [{check.code}]" if check.code else ""
    return f"{check.level:8} {check.what:12} {check.which}{why}"


def _checks(config: Config) -> Iterator[Check]:
    enrollment = _enrollment(config.state)
    yield Check("enrolment", f"{enrollment.device} of fleet {enrollment.fleet}", "ok")
    yield _certificate(config, enrollment)
    floors = read_floors(config.state / "trust")
    if floors is None:
        yield Check("floors", "trust/", "error", "floor_lost", "no slot can be read; enrol anew")
        floors = Floors()
    else:
        yield Check("floors", f"assignment {floors.counter}, root {floors.root}", "ok")
    with tempfile.TemporaryDirectory() as cache:
        catalog, found = _chain(config, enrollment, floors, Path(cache))
        yield from found
        yield from _versions(config, floors, catalog)
    yield from _store(config)


def _enrollment(state: Path) -> Enrollment:
    data = durable.read_bytes(state / "identity" / "enrollment.json")
    if data is None:
        raise InvalidInputError(
            "This device is not enrolled.",
            code="not_enrolled",
            hint="There is nothing to verify before `edgefleet-agent enroll`.",
        )
    return strict_json.decode(
        data, Enrollment, max_bytes=ENROLLMENT_MAX_BYTES, what="file identity/enrollment.json"
    )


def _certificate(config: Config, enrollment: Enrollment) -> Check:
    which = "tls.crt" if config.identity.key else "device.crt"
    try:
        data = (config.state / "identity" / which).read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (OSError, ValueError) as error:
        return Check("certificate", which, "error", "damaged_identity", str(error))
    if [name.value for name in names] != [enrollment.device]:
        return Check("certificate", which, "error", "wrong_device", "it names another device")
    until = certificate.not_valid_after_utc
    if until <= datetime.now(UTC):
        detail = f"it ended at {until:%Y-%m-%dT%H:%M:%SZ}; agentd renews it"
        return Check("certificate", which, "warning", "certificate_expired", detail)
    return Check("certificate", f"{which}, until {until:%Y-%m-%dT%H:%M:%SZ}", "ok")


def _chain(
    config: Config, enrollment: Enrollment, floors: Floors, cache: Path
) -> tuple[Catalog | None, list[Check]]:
    """Walk from the pinned root to the assignment that was accepted last."""
    root = durable.read_bytes(config.state / "identity" / "root.json")
    payload = durable.read_bytes(config.state / "desired" / "accepted.json")
    if root is None:
        detail = "identity/root.json is missing; enrol anew"
        return None, [Check("root", "root.json", "error", "damaged_identity", detail)]
    if payload is None:
        return None, [Check("assignment", "none was accepted yet", "ok")]
    found: list[Check] = []
    try:
        opened = open_document(payload)
        catalog = _catalog(cache, BundleFetcher(opened.files), root, floors, found)
        assignment = unseal_assignment(opened.envelope, catalog.targets)
    except EdgeFleetError as error:
        return None, [*found, Check("catalog", "accepted.json", "error", error.code, error.message)]
    which = f"{assignment.counter}, by the director, until {assignment.expires}"
    if (assignment.fleet, assignment.device) != (enrollment.fleet, enrollment.device):
        detail = f"it is for {assignment.device} of {assignment.fleet}"
        found.append(Check("assignment", which, "error", "wrong_device", detail))
    elif not config.identity.key and assignment.key != _key(config):
        detail = "it is for another key; after a renewal the next one is for this"
        found.append(Check("assignment", which, "warning", "wrong_key", detail))
    else:
        found.append(Check("assignment", which, "ok"))
    return catalog, found


def _catalog(
    cache: Path, fetcher: BundleFetcher, root: bytes, floors: Floors, found: list[Check]
) -> Catalog:
    now = datetime.now(UTC)
    try:
        catalog = Catalog(cache, fetcher, root, now, Floors())
        found.append(Check("catalog", f"until {catalog.expires:%Y-%m-%dT%H:%M:%SZ}", "ok"))
    except EdgeFleetError as error:
        if error.code != "metadata_expired" or not floors.time:
            raise
        # Expiry blocks change, not service; the signatures still have to hold.
        catalog = Catalog(cache, fetcher, root, parse_time(floors.time), Floors())
        detail = "it has expired: what runs goes on, nothing new is accepted by it"
        found.append(Check("catalog", "signatures", "warning", error.code, detail))
    return catalog


def _key(config: Config) -> str:
    data = durable.read_bytes(config.state / "identity" / "device.crt")
    if data is None:
        return ""
    public = x509.load_pem_x509_certificate(data).public_key()
    return sha256_digest(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _versions(config: Config, floors: Floors, catalog: Catalog | None) -> Iterator[Check]:
    for name, record in sorted(read_document(config.state / "journal.json").slots.items()):
        for place, version in (("active", record.active), ("previous", record.previous)):
            if version is not None:
                which = f"{name} {version.version} ({place})"
                yield _release(which, version, floors, catalog)
                yield from _blobs(config, which, version)


def _release(which: str, version: VersionRef, floors: Floors, catalog: Catalog | None) -> Check:
    if code := why_not_serve(version.release_counter, floors.model(version.model).security_floor):
        return Check("release", which, "error", code, "its publisher forbids it")
    if catalog is None:
        return Check("release", which, "error", "not_in_catalog", "no catalog can be verified")
    try:
        target = catalog.find_release(version.model, target_path(version.model, version.version))
    except EdgeFleetError as error:
        return Check("release", which, "error", error.code, error.message)
    if target is None:
        detail = "its publisher no longer lists it"
        return Check("release", which, "warning", "not_in_catalog", detail)
    if read_release(target).digest != version.digest:
        return Check("release", which, "error", "disagree", "its publisher signed other bytes")
    return Check("release", which, "ok")


def _blobs(config: Config, which: str, version: VersionRef) -> Iterator[Check]:
    for digest, size in {version.digest: version.size, **version.blobs}.items():
        path = blob_path(config.state / "store", digest)
        where = f"{which} {digest[:19]}"
        if not path.exists():
            yield Check("blob", where, "error", "blob_missing", "agentd fetches it again")
        elif path.stat().st_size != size:
            yield Check("blob", where, "error", "blob_corrupt", "it has another size")


def _store(config: Config) -> Iterator[Check]:
    """Hash every blob once, whoever needs it."""
    folder = config.state / "store" / "blobs" / "sha256"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            same = hash_file(path) == f"sha256:{path.name}"
        except OSError as error:
            yield Check("blob", path.name[:12], "error", "unreadable", str(error))
            continue
        if same:
            yield Check("blob", f"sha256:{path.name[:12]}", "ok")
        else:
            detail = "its bytes are not those that were signed; agentd fetches it again"
            yield Check("blob", f"sha256:{path.name[:12]}", "error", "blob_corrupt", detail)
