"""The catalog as the fleet manager keeps it: owners' files in, freshness added, bundles out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from sqlmodel import Session
from tuf.api.metadata import TargetFile

from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_cloud.trust import chain, online, rules
from edgefleet_cloud.trust.online import OnlineKeys
from edgefleet_cloud.trust.repository import MetadataFolder
from edgefleet_cloud.trust.rules import Entry
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.errors import TrustError
from edgefleet_shared.messages import ASSIGNMENT_TYPE, Assignment
from edgefleet_shared.package import publisher_role, target_path
from edgefleet_shared.steps import Step

_log = logging.getLogger(__name__)


class Trust:
    """Ports `Catalog` and `Director` over a metadata folder and the online keys.

    Args:
        folder: The TUF repository.
        keys: The online keys.
        events: Where what happened is remembered.
        clock: Tells the time.

    Raises:
        InvalidInputError: The folder cannot be read.
        TrustError: The repository does not hold, or the keys are not its own.
    """

    def __init__(
        self, folder: MetadataFolder, keys: OnlineKeys, events: EventSink, clock: Clock
    ) -> None:
        self._folder = folder
        self._events = events
        self._keys = keys
        self._clock = clock
        self._turn = threading.Lock()
        self._now = chain.read(folder.all())
        self._bundle = bundle.encode(self._now.files)
        online.check_keys(keys, self._now.root)
        self._warn()

    def bundle(self) -> bytes:
        """Return every file that a device may lack (`edgefleet_shared.bundle`)."""
        return self._bundle

    def first_root(self) -> bytes:
        """Return 1.root.json, on which enrolment pins a device."""
        return self._now.files[chain.file_name("root", 1)]

    def names(self) -> list[str]:
        """Return the names of all metadata files, old versions too."""
        return self._folder.names()

    def file(self, name: str) -> bytes:
        """Return a metadata file.

        Raises:
            NotFoundError: There is none of this name.
        """
        return self._folder.read(name)

    def target(self, model: str, version: str) -> TargetFile | None:
        """Return the catalog's entry of a model version, or None."""
        role = self._now.publishers.get(publisher_role(model))
        return role.targets.get(target_path(model, version)) if role else None

    def releases(self) -> dict[str, TargetFile]:
        """Return every entry of the catalog by its path."""
        return {
            path: target
            for role in self._now.publishers.values()
            for path, target in role.targets.items()
        }

    def next_publisher_file(self, model: str) -> str:
        """Return the name that a publisher's next file must have."""
        meta = self._now.snapshot.meta.get(f"{publisher_role(model)}.json")
        return chain.file_name(publisher_role(model), meta.version + 1 if meta else 1)

    def accept(self, incoming: Mapping[str, bytes], entry: Entry | None = None) -> None:
        """Make newly signed files part of the repository; durable after.

        Args:
            incoming: File name -> bytes, signed by owners or publishers.
            entry: The one release that they must add; None: they may add none.

        Raises:
            InvalidInputError: Not files that owners sign.
            TrustError: They may not follow what is here.
            UnavailableError: They cannot be written; nothing changed.
        """
        with self._turn:
            accepted = rules.check_incoming(self._now, incoming, entry, self._clock())
            online.check_keys(self._keys, accepted.root)
            self._become({**incoming}, accepted.versions, snapshot=True)

    def submit(self, session: Session, incoming: Mapping[str, bytes], actor: str) -> None:
        """Accept files that an owner sends by themselves; raises as `accept`."""
        self.accept(incoming)
        self._events.record(
            session,
            type="trust.accepted",
            step=Step.ACCEPT,
            subject="trust/metadata",
            message=f"The owners signed {', '.join(sorted(incoming))}.",
            actor=actor,
        )

    def renew(self) -> None:
        """Sign snapshot and timestamp anew if half of their life is over."""
        with self._turn:
            snapshot, timestamp = online.refresh(self._now, self._clock())
            if snapshot or timestamp:
                self._become({}, {}, snapshot=snapshot)
                _log.info("Timestamp is now version %s", self._now.timestamp.version)
        self._warn()

    def sign(self, assignment: Assignment) -> bytes:
        """Return the DSSE envelope of an assignment.

        Raises:
            TrustError: The owners no longer let the server's director key sign (`director_key`).
        """
        signer = self._keys.director
        if signer.public_key.keyid not in chain.director_keys(self._now.targets):
            raise TrustError(
                "Targets do not let the server's key director.pem sign assignments.",
                code="director_key",
                hint="Put the key that targets name into the keys folder as director.pem.",
            )
        return dsse.seal(strict_json.encode(assignment), ASSIGNMENT_TYPE, signer)

    def _become(
        self, files: dict[str, bytes], versions: Mapping[str, int], *, snapshot: bool
    ) -> None:
        files |= online.sign_next(self._now, versions, self._keys, self._clock(), snapshot=snapshot)
        # Read as a device would: what does not hold together is never written.
        after = chain.read({**self._now.files, **files})
        packed = bundle.encode(after.files)
        bundle.decode(packed)
        self._folder.publish(files)
        self._now, self._bundle = after, packed

    def _warn(self) -> None:
        time = self._clock()
        now = self._now
        for name, signed in {"root": now.root, "targets": now.targets, **now.publishers}.items():
            if signed.is_expired(time):
                _log.warning("%s has expired: devices change nothing until it is renewed", name)
        if self._keys.director.public_key.keyid not in chain.director_keys(now.targets):
            _log.warning("The owners do not let director.pem sign: devices refuse every assignment")
