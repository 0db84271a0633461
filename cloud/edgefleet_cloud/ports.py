"""What the rooms ask of one another and of the world; `compose` says who answers.

Each is small on purpose. A service takes the ports that it needs in its constructor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from securesystemslib.signer import Key
from sqlmodel import Session

from edgefleet_shared.messages import Assignment


class Clock(Protocol):
    """Tells the time, in UTC and aware of it."""

    def __call__(self) -> datetime:
        """Return now."""
        ...


def system_clock() -> datetime:
    """Return the machine's time in UTC."""
    return datetime.now(UTC)


class BackgroundService(Protocol):
    """Something that runs beside the API in the same event loop."""

    async def start(self) -> None:
        """Start; return once it works."""
        ...

    async def stop(self) -> None:
        """Stop and free everything; called once, in reverse order of starting."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Return what the ready file should say about it, for example `broker`."""
        ...


class EventSink(Protocol):
    """Remembers what happened, in the caller's transaction."""

    def record(
        self,
        session: Session,
        *,
        type: str,  # noqa: A002 - the field's name in the API
        step: str,
        subject: str,
        message: str,
        actor: str = "",
        data: Mapping[str, Any] | None = None,
        reason: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one event.

        Args:
            session: The transaction that does what the event tells.
            type: Dotted, for example `model.version.published`.
            step: One of the twelve words (`steps.Step`).
            subject: What it is about, for example `models/digits/versions/1.0.0`.
            message: One sentence.
            actor: Who did it, for example `token/admin` or `devices/cam-1`; '' = the server.
            data: Details, JSON.
            reason: Why, in the words of who did it; '' = the words that came with the request
                (`database.reason_of`), if any.
            before: What was there, JSON; None if the event made it, or changes nothing. Never a
                secret, nor the hash of one.
            after: What is there now; None if the event took it away, or changes nothing.
        """
        ...


class DeviceKeys(Protocol):
    """Knows the public keys of enrolled devices."""

    def key_of(self, device_id: str) -> Key | None:
        """Return the key of an enrolled device; None if it has none or is decommissioned."""
        ...


class Disconnector(Protocol):
    """Ends what a revoked device holds at the broker."""

    def disconnect(self, device_id: str) -> None:
        """End a device's connection and keep it from coming back with what was revoked.

        Called after the revocation is on disk, in the writer's thread, outside the transaction. On
        return the work is done or under way; a broker that cannot be reached now is tried again
        until it has been told. Its session, queue and retained messages are gone afterwards.
        Calling it again, also for a device that is not connected, does no harm.
        """
        ...


class Director(Protocol):
    """Signs what devices should run."""

    def sign(self, assignment: Assignment) -> bytes:
        """Return the DSSE envelope of an assignment."""
        ...


class DirectorSeal(Protocol):
    """Seals what a device must believe that is no assignment."""

    def seal(self, payload: bytes, payload_type: str) -> bytes:
        """Return the DSSE envelope of a payload, signed by the director."""
        ...


class Catalog(Protocol):
    """The TUF repository as it stands now: what may run."""

    def bundle(self) -> bytes:
        """Return every file that a device may lack (`edgefleet_shared.bundle`)."""
        ...

    def first_root(self) -> bytes:
        """Return 1.root.json, on which enrolment pins a device."""
        ...

    def versions(self) -> Mapping[str, int]:
        """Return the newest version of every role, below which a new device believes nothing."""
        ...


class Release(NamedTuple):
    """A published model version, as rollouts need it. `size` is the manifest's, in bytes.

    `hardware` holds every hardware string that some variant names.
    """

    model: str
    version: str
    manifest: str
    size: int
    release_counter: int
    security_floor: int
    hardware: frozenset[str]


class Releases(Protocol):
    """Knows the published model versions."""

    def find(self, session: Session, model: str, version: str) -> Release:
        """Return one version.

        Raises:
            NotFoundError: It is not published.
        """
        ...

    def by_manifest(self, session: Session, manifest: str) -> Release | None:
        """Return the version with this manifest digest, or None."""
        ...


class Blob(NamedTuple):
    """A stored blob: its digest and its size in bytes."""

    digest: str
    size: int


class Blobs(Protocol):
    """Immutable bytes by digest."""

    def has(self, digest: str) -> bool:
        """Return whether the blob is stored, whole."""
        ...

    def stat(self, digest: str) -> Blob:
        """Return digest and size.

        Raises:
            NotFoundError: There is no such blob.
        """
        ...

    def open(
        self, digest: str, start: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Yield the bytes from `start`, `length` of them or all the rest, in chunks.

        Raises:
            NotFoundError: There is no such blob.
            RangeError: `start` is beyond its end.
        """
        ...

    def put(self, finished: Path, digest: str) -> Blob:
        """Take a finished file, whose digest has been checked, out of its place; durable after.

        The file is gone from `finished` afterwards. A blob that exists already stays as it is.
        """
        ...

    def tag(self, name: str, image: bytes) -> None:
        """Store an OCI image manifest and list it in the store's index under `name`.

        Args:
            name: For example `digits-1.0.0`; a second one replaces the first.
            image: The manifest's JSON, whose blobs are stored already.
        """
        ...


class Handler(Protocol):
    """Takes one message from a device; returning means that it is on disk."""

    def __call__(self, topic: str, payload: bytes, /) -> None:
        """Handle a message.

        Raises:
            UnavailableError: Not now; it is delivered again until it works.
            Exception: It is delivered again a few times, then dropped with an error in the log.
        """
        ...


class Transport(Protocol):
    """Carries documents to devices and messages from them; works whether or not it is connected."""

    @property
    def connected(self) -> bool:
        """Return whether messages flow now."""
        ...

    @property
    def pending(self) -> int:
        """Return how many published messages the other side does not have yet."""
        ...

    def start(self, handler: Handler) -> None:
        """Connect and stay connected; returns at once. `handler` runs in one thread, in order."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future[None]:
        """Send, now or when the connection is back; the future ends when the other side has it.

        Safe from any thread. Of a retained topic only the newest waiting message is sent.
        """
        ...

    def stop(self) -> None:
        """Disconnect. What was not acknowledged is delivered again to whoever starts next."""
        ...
