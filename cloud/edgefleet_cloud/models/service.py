"""What can be done with models and versions. No HTTP here, and no commit: both are the caller's."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlmodel import Session

from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.models import acceptance, provenance, repository
from edgefleet_cloud.models.tables import ModelRow, ModelVersionRow
from edgefleet_cloud.ports import Blobs, Clock, EventSink, Release
from edgefleet_cloud.trust.rules import check_entry
from edgefleet_cloud.trust.service import Trust
from edgefleet_shared.alike import check_alike
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.identifiers import check_digest, check_name, check_version, new_id
from edgefleet_shared.package import Manifest
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

PUBLISHED = "published"
_log = logging.getLogger(__name__)


class ModelService:
    """Creates models, accepts versions, finds both. It is the port `Releases`.

    Args:
        blobs: Where manifests and files are.
        trust: The catalog that releases are signed into.
        events: Where what happened is remembered.
        clock: Tells the time.
        require_provenance: Whether a version without a signature bundle is refused.
    """

    def __init__(
        self,
        blobs: Blobs,
        trust: Trust,
        events: EventSink,
        clock: Clock,
        *,
        require_provenance: bool = False,
    ) -> None:
        self._blobs = blobs
        self._trust = trust
        self._events = events
        self._clock = clock
        self._require_provenance = require_provenance

    def create(
        self, session: Session, name: str, description: str, labels: Mapping[str, str], actor: str
    ) -> ModelRow:
        """Create a model.

        Raises:
            InvalidInputError: The name cannot be used.
            ConflictError: There is one of that name.
        """
        check_name(name, "model")
        if repository.get_model(session, name):
            raise ConflictError(
                f"There is a model {name!r} already.",
                code="already_exists",
                hint=f"GET /v1/models/{name} shows it.",
            )
        row = ModelRow(
            name=name,
            description=description,
            labels=dict(labels),
            created=format_time(self._clock()),
        )
        session.add(row)
        session.flush()
        self._tell(
            session,
            "model.created",
            f"models/{name}",
            f"Model {name} was created.",
            actor,
            after={"description": description, "labels": dict(labels)},
        )
        return row

    def get(self, session: Session, name: str) -> ModelRow:
        """Return a model.

        Raises:
            NotFoundError: There is none of that name.
        """
        row = repository.get_model(session, name)
        if row is None:
            raise NotFoundError(
                f"There is no model {name[:80]!r}.", hint="GET /v1/models lists them."
            )
        return row

    def version(self, session: Session, model: str, version: str) -> ModelVersionRow:
        """Return a version of a model.

        Raises:
            NotFoundError: It is not published.
        """
        row = repository.get_version(session, model, version)
        if row is None:
            raise NotFoundError(
                f"{model[:80]} {version[:80]} is not published.",
                hint=f"GET /v1/models/{model[:80]}/versions lists what is.",
            )
        return row

    def manifest(self, session: Session, model: str, version: str) -> bytes:
        """Return the exact bytes of a version's manifest.

        Raises:
            NotFoundError: It is not published.
        """
        digest = self.version(session, model, version).manifest
        return acceptance.read_manifest(self._blobs, digest)[1]

    def find(self, session: Session, model: str, version: str) -> Release:
        """Return a version as rollouts need it; raises as `version`."""
        return _release(self.version(session, model, version))

    def by_manifest(self, session: Session, manifest: str) -> Release | None:
        """Return the version with this manifest digest, or None."""
        row = repository.by_manifest(session, manifest)
        return _release(row) if row else None

    def publish(
        self,
        session: Session,
        model: str,
        version: str,
        digest: str,
        metadata: bytes,
        actor: str,
        bundle: str = "",
    ) -> tuple[ModelVersionRow, bool]:
        """Accept a version; the same one again is found, not published twice.

        The catalog changes before the database does. If the commit fails, or the process dies
        between, the catalog has a release that the database lacks: `recover` or a repetition of
        this call puts it in.

        Args:
            session: The caller's transaction.
            model: The model's name; it is created if it is not there.
            version: Semantic version.
            digest: The manifest's.
            metadata: The publisher's next role file; looked at only if the catalog lacks this
                release.
            actor: Who asks.
            bundle: Digest of its Model Signing bundle; '' if there is none.

        Returns:
            The version, and whether it is new.

        Raises:
            InvalidInputError: Manifest or files are missing or do not fit.
            ConflictError: The version is published with other content, or its counter is old.
            TrustError: The metadata does not hold, or disagrees with the manifest; or the bundle
                does not vouch for the package, or is missing where one is demanded.
        """
        check_name(model, "model")
        check_version(version)
        check_digest(digest)
        if row := repository.get_version(session, model, version):
            if row.manifest == digest:
                self._complete(session, row, bundle, actor)
                return row, False
            raise ConflictError(
                f"{model} {version} is published with another manifest.",
                code="version_exists",
                hint="A version never changes: publish this one under a new version.",
            )
        manifest, data = acceptance.read_manifest(self._blobs, digest)
        newest = repository.newest_counter(session, model)
        acceptance.check_identity(manifest, model, version, newest)
        check_alike(manifest.variants)
        acceptance.check_files(self._blobs, manifest)
        if bundle:
            keys = self._trust.publisher_keys(model)
            provenance.check(self._blobs, bundle, manifest, data, keys)
        elif self._require_provenance:
            raise provenance.missing(f"{model} {version}")
        entry = acceptance.entry_of(manifest, data)
        if target := self._trust.target(model, version):
            check_entry(target, entry)
        else:
            self._trust.accept({self._trust.next_publisher_file(model): metadata}, entry)
        return self._add(session, manifest, data, digest, actor, bundle), True

    def _complete(self, session: Session, row: ModelVersionRow, bundle: str, actor: str) -> None:
        """Add the bundle of a version that `recover` put in without knowing it."""
        if not bundle or row.provenance:
            return
        manifest, data = acceptance.read_manifest(self._blobs, row.manifest)
        provenance.check(self._blobs, bundle, manifest, data, self._trust.publisher_keys(row.model))
        self._attach(manifest, acceptance.image_of(manifest, data), bundle)
        row.provenance = bundle
        session.add(row)
        self._tell(
            session,
            "model.version.vouched",
            f"models/{row.model}/versions/{row.version}",
            f"A signature bundle came for {row.model} {row.version}.",
            actor,
            before={"provenance": ""},
            after={"provenance": bundle},
        )

    def _attach(self, manifest: Manifest, image: bytes, bundle: str) -> None:
        referrer = provenance.referrer_of(image, bundle, self._blobs.stat(bundle).size)
        self._blobs.tag(f"{manifest.name}-{manifest.version}.sig", referrer)

    def recover(self, session: Session) -> None:
        """Put in what the catalog has and the database lacks; called once at start."""
        for path, target in sorted(
            self._trust.releases().items(), key=lambda item: _counter(item[1].custom)
        ):
            _, model, version, _ = path.split("/")
            if repository.get_version(session, model, version):
                continue
            digest = "sha256:" + target.hashes.get("sha256", "")
            try:
                manifest, data = acceptance.read_manifest(self._blobs, digest)
                acceptance.check_files(self._blobs, manifest)
                check_entry(target, acceptance.entry_of(manifest, data))
            except EdgeFleetError as error:
                _log.warning("%s is signed and cannot be used: %s", path, error)
                continue
            self._add(session, manifest, data, digest, "")

    def _add(
        self,
        session: Session,
        manifest: Manifest,
        data: bytes,
        digest: str,
        actor: str,
        bundle: str = "",
    ) -> ModelVersionRow:
        name, version = manifest.name, manifest.version
        image = acceptance.image_of(manifest, data)
        self._blobs.tag(f"{name}-{version}", image)
        if bundle:
            self._attach(manifest, image, bundle)
        if repository.get_model(session, name) is None:
            self.create(session, name, manifest.description, {}, actor)
        row = ModelVersionRow(
            id=new_id(),
            model=name,
            version=version,
            manifest=digest,
            size=len(data),
            release_counter=manifest.release_counter,
            security_floor=manifest.security_floor,
            state=PUBLISHED,
            variants=acceptance.variants_of(manifest),
            created=format_time(self._clock()),
            provenance=bundle,
        )
        session.add(row)
        session.flush()
        self._tell(
            session,
            "model.version.published",
            f"models/{name}/versions/{version}",
            f"{name} {version} was accepted.",
            actor,
            {"manifest": digest, "release_counter": manifest.release_counter},
            after=row.model_dump(
                include={
                    "manifest",
                    "size",
                    "release_counter",
                    "security_floor",
                    "state",
                    "provenance",
                }
            ),
        )
        return row

    def _tell(
        self,
        session: Session,
        kind: str,
        subject: str,
        message: str,
        actor: str,
        data: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
        before: Mapping[str, object] | None = None,
    ) -> None:
        self._events.record(
            session,
            type=kind,
            step=Step.ACCEPT,
            subject=subject,
            message=message,
            actor=actor,
            data=data,
            before=before,
            after=after,
        )


def _release(row: ModelVersionRow) -> Release:
    hardware = frozenset(name for variant in row.variants for name in variant["hardware"])
    return Release(
        row.model,
        row.version,
        row.manifest,
        row.size,
        row.release_counter,
        row.security_floor,
        hardware,
    )


def _counter(custom: object) -> int:
    found = custom.get("release_counter") if isinstance(custom, dict) else None
    return found if isinstance(found, int) else 0
