"""The catalog as the fleet manager keeps it: owners' files in, freshness added, bundles out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime

from securesystemslib.signer import Key
from sqlmodel import Session
from tuf.api.metadata import Root, TargetFile, Targets

from edgefleet_cloud.ports import Clock, EventSink
from edgefleet_cloud.trust import chain, online, rules
from edgefleet_cloud.trust.key_folder import KeyFolder, OnlineKeys, StoredKey
from edgefleet_cloud.trust.repository import MetadataFolder
from edgefleet_cloud.trust.rules import Entry
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.audit import HEAD_TYPE
from edgefleet_shared.errors import TrustError
from edgefleet_shared.messages import ASSIGNMENT_TYPE, DESIRED_MAX_BYTES, Assignment
from edgefleet_shared.package import publisher_role, target_path
from edgefleet_shared.steps import Step

ENVELOPE_ROOM = 48 * 1024  # for an assignment of many slots
BUNDLE_MAX_BYTES = (DESIRED_MAX_BYTES - ENVELOPE_ROOM) * 3 // 4
"""What fits into a desired document, which carries it in base64 beside the assignment."""

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
        self, folder: MetadataFolder, keys: KeyFolder, events: EventSink, clock: Clock
    ) -> None:
        self._folder = folder
        self._events = events
        self._keys = keys
        self._clock = clock
        self._turn = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._said = False
        self._now = chain.read(folder.all())
        self._bundle = bundle.encode(self._now.files)
        self._signers = keys.choose(self._now.root, self._now.targets)
        self._warn()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in any thread, after owners' files became part of this."""
        self._listeners.append(listener)

    def bundle(self) -> bytes:
        """Return every file that a device may lack (`edgefleet_shared.bundle`)."""
        return self._bundle

    def first_root(self) -> bytes:
        """Return 1.root.json, on which enrolment pins a device."""
        return self._now.files[chain.file_name("root", 1)]

    def versions(self) -> dict[str, int]:
        """Return the newest version of every role, publishers' by their full name."""
        now = self._now
        targets = {name.removesuffix(".json"): m.version for name, m in now.snapshot.meta.items()}
        online = {"timestamp": now.timestamp.version, "snapshot": now.snapshot.version}
        return {"root": now.root.version, **online, **targets}

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

    def publisher_keys(self, model: str) -> list[Key]:
        """Return the keys that may sign the versions of a model."""
        delegations = self._now.targets.delegations
        role = (delegations.roles or {}).get(publisher_role(model)) if delegations else None
        if delegations is None or role is None:
            return []
        return [delegations.keys[keyid] for keyid in role.keyids]

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
            TrustError: They may not follow what is here, or name keys that are not here.
            UnavailableError: They cannot be written; nothing changed.
        """
        with self._turn:
            accepted = rules.check_incoming(self._now, incoming, entry, self._clock())
            signers = self._keys.choose(accepted.root, accepted.targets)
            if signers.director is None and "targets" in accepted.versions:
                raise _no_director("online_key")
            self._become({**incoming}, accepted.versions, signers, snapshot=True)
        for listener in self._listeners:
            listener()

    def submit(self, session: Session, incoming: Mapping[str, bytes], actor: str) -> None:
        """Accept files that an owner sends by themselves; raises as `accept`."""
        before = self._versions()
        self.accept(incoming)
        after = self._versions()
        changed = {role for role in after if after[role] != before.get(role)}
        self._events.record(
            session,
            type="trust.accepted",
            step=Step.ACCEPT,
            subject="trust/metadata",
            message=f"The owners signed {', '.join(sorted(incoming))}.",
            actor=actor,
            before={role: version for role, version in before.items() if role in changed},
            after={role: after[role] for role in sorted(changed)},
        )

    def renew(self) -> None:
        """Sign snapshot and timestamp anew if half of their life is over; look at the keys."""
        with self._turn:
            self._signers = self._keys.choose(self._now.root, self._now.targets)
            snapshot, timestamp = online.refresh(self._now, self._clock())
            if snapshot or timestamp:
                self._become({}, {}, self._signers, snapshot=snapshot)
                _log.info("Timestamp is now version %s", self._now.timestamp.version)
        self._warn()

    def sign(self, assignment: Assignment) -> bytes:
        """Return the DSSE envelope of an assignment; raises as `seal`."""
        return self.seal(strict_json.encode(assignment), ASSIGNMENT_TYPE)

    def seal(self, payload: bytes, payload_type: str) -> bytes:
        """Return the DSSE envelope of a payload, signed by the director.

        Raises:
            TrustError: The owners no longer let the server's director key sign (`director_key`).
        """
        signer = self._signers.director
        if signer is None:
            raise _no_director("director_key")
        return dsse.seal(payload, payload_type, signer)

    def audit_key(self) -> str | None:
        """Return the id of the key here that may sign statements about the log, or None."""
        signer = self._signers.audit
        return None if signer is None else str(signer.public_key.keyid)

    def sign_head(self, payload: bytes) -> bytes | None:
        """Return the DSSE envelope of a statement about the log; None without a key for it."""
        signer = self._signers.audit
        return None if signer is None else dsse.seal(payload, HEAD_TYPE, signer)

    def online_keys(self) -> list[tuple[StoredKey, bool]]:
        """Return every key of the folder, and whether the owners' metadata names it now."""
        now = self._now
        named = {
            "director": chain.director_keys(now.targets),
            "audit": chain.audit_keys(now.targets),
            **{role: frozenset(now.root.roles[role].keyids) for role in ("snapshot", "timestamp")},
        }
        return [(key, key.keyid in named[key.role]) for key in self._keys.all()]

    def make_key(self, session: Session, role: str, actor: str) -> StoredKey:
        """Make the next key of an online role; it signs once the owners have named it.

        Raises:
            InvalidInputError: Not an online role, or it has too many keys already.
            UnavailableError: It cannot be written.
        """
        made = self._keys.make(role)
        self._events.record(
            session,
            type="trust.key_made",
            step=Step.ACCEPT,
            subject=f"trust/keys/{made.keyid}",
            message=f"A key for {role} was made; it signs nothing until the owners name it.",
            actor=actor,
            after={"role": role, "keyid": made.keyid, "file": made.file},
        )
        return made

    def expiries(self) -> dict[str, datetime]:
        """Return when each role that people sign ends, by its name."""
        return {name: signed.expires for name, signed in self._signed_by_people().items()}

    def _versions(self) -> dict[str, int]:
        return {name: signed.version for name, signed in self._signed_by_people().items()}

    def _signed_by_people(self) -> dict[str, Root | Targets]:
        now = self._now
        return {"root": now.root, "targets": now.targets, **now.publishers}

    def _become(
        self,
        files: dict[str, bytes],
        versions: Mapping[str, int],
        signers: OnlineKeys,
        *,
        snapshot: bool,
    ) -> None:
        files |= online.sign_next(self._now, versions, signers, self._clock(), snapshot=snapshot)
        # Read as a device would: what does not hold together is never written.
        after = chain.read({**self._now.files, **files})
        packed = bundle.encode(after.files)
        bundle.decode(packed)
        if len(packed) > BUNDLE_MAX_BYTES and len(packed) > len(self._bundle):
            raise TrustError(
                f"The catalog would be {len(packed)} bytes for a device, more than it takes.",
                code="bundle_too_large",
                hint="Every root and every release travels with it, and those are too many.",
            )
        self._folder.publish(files)
        self._now, self._bundle, self._signers = after, packed, signers

    def _warn(self) -> None:
        if self._signers.director is None:
            _log.warning("The owners let no key here sign: devices refuse every assignment")
        if self._signers.audit is None and not self._said:
            self._said = True  # once: it may stay so
            _log.warning(
                "Targets name no key here for the role audit: the log is chained, and nobody signs"
                " it. `edgefleet keys rotate audit` makes the key and has it named"
            )


def _no_director(code: str) -> TrustError:
    return TrustError(
        "Targets do not let a key of the server sign assignments.",
        code=code,
        hint="`edgefleet keys rotate director` makes one here and has it named.",
    )
