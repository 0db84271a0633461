"""Uploads: begun, continued after any break, checked at the end, then a blob."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sqlmodel import Session

from edgefleet_cloud import durable
from edgefleet_cloud.blobs import repository
from edgefleet_cloud.blobs.tables import UploadRow
from edgefleet_cloud.errors import ConflictError, NotFoundError, TooLargeError
from edgefleet_cloud.ports import Blobs, Clock, EventSink
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from edgefleet_shared.identifiers import check_digest, new_id
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

OPEN, COMPLETE = "open", "complete"
KEPT = timedelta(days=7)


class Progress(NamedTuple):
    """An upload as its caller sees it; `offset` is the number of bytes that are on disk."""

    id: str
    digest: str
    size: int
    offset: int
    state: str


class OffsetError(ConflictError):
    """The caller does not go on where the upload stands; `extra` tells where that is."""

    default_code = "wrong_offset"

    def __init__(self, offset: int) -> None:
        super().__init__(
            f"The upload stands at byte {offset}.",
            hint=f"Send the bytes from {offset} on, with Upload-Offset: {offset}.",
        )
        self.extra = {"offset": offset}


class Uploads:
    """Takes bytes and makes blobs of them.

    Args:
        blobs: Where finished ones go.
        folder: Where unfinished ones lie; on the blobs' file system.
        max_bytes: Largest blob taken.
        events: Told of what begins, is stored or is given up.
        clock: Tells the time.
    """

    def __init__(
        self, blobs: Blobs, folder: Path, max_bytes: int, events: EventSink, clock: Clock
    ) -> None:
        self.blobs = blobs
        self._folder = folder
        self._max_bytes = max_bytes
        self._events = events
        self._clock = clock
        self._busy: set[str] = set()
        self._busy_turn = threading.Lock()
        durable.make_folder(folder)

    def begin(self, session: Session, digest: str, size: int, actor: str) -> Progress:
        """Begin an upload, or find the open one of the same digest and size.

        A blob that is stored already gives state `complete` at once, with id ''.

        Raises:
            InvalidInputError: Not a digest, or the blob is stored with another size.
            TooLargeError: More than the server takes.
        """
        check_digest(digest)
        if size > self._max_bytes:
            raise TooLargeError(
                f"A blob may have {self._max_bytes} bytes; this one has {size}.",
                hint="The server's owner may raise [limits] upload_max_bytes.",
            )
        if self.blobs.has(digest):
            if (stored := self.blobs.stat(digest).size) != size:
                raise InvalidInputError(f"{digest} has {stored} bytes, not {size}.", code="size")
            return Progress("", digest, size, size, COMPLETE)
        row = repository.find_upload(session, digest, size, OPEN)
        if row is None:
            now = format_time(self._clock())
            row = UploadRow(id=new_id(), digest=digest, size=size, state=OPEN, created=now)
            session.add(row)
            self._path(row.id).touch()
            durable.sync_folder(self._folder)
            self._tell(session, row, "begun", actor, None, OPEN)
        return self._progress(row)

    def get(self, session: Session, upload_id: str) -> Progress:
        """Return how far an upload is.

        Raises:
            NotFoundError: There is none of this id, or no longer.
        """
        return self._progress(self._find(session, upload_id))

    def receive(self, progress: Progress, offset: int) -> Receiver:
        """Open an upload for bytes from `offset`; the caller must close what it is given.

        Raises:
            OffsetError: The upload stands elsewhere.
            ConflictError: Another request is sending, or has sent the last byte.
        """
        path = self._path(progress.id)
        with self._busy_turn:
            if progress.id in self._busy:
                raise ConflictError("Another request is sending these bytes.", code="upload_busy")
            if not path.exists() and self.blobs.has(progress.digest):
                raise ConflictError("The upload is complete.", code="upload_complete")
            # Without its file an upload begins anew, as `get` says.
            stands = path.stat().st_size if path.exists() else 0
            if stands != offset:
                raise OffsetError(stands)
            file = path.open("ab")
            self._busy.add(progress.id)
        return Receiver(file, progress.size, offset, partial(self._release, progress.id))

    def _release(self, upload_id: str) -> None:
        with self._busy_turn:
            self._busy.discard(upload_id)

    def check(self, progress: Progress) -> bool:
        """Return whether a full upload has its digest. Takes as long as reading it does."""
        path = self._path(progress.id)
        if not path.exists():
            return self.blobs.has(progress.digest)
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == progress.digest

    def finish(self, session: Session, progress: Progress, actor: str) -> Progress:
        """Make a blob of a checked upload.

        Raises:
            NotFoundError: The upload is gone.
        """
        row = self._find(session, progress.id)
        path = self._path(row.id)
        if path.exists():
            self.blobs.put(path, row.digest)
        row.state = COMPLETE
        session.add(row)
        self._tell(session, row, "stored", actor, OPEN, COMPLETE)
        return self._progress(row)

    def discard(self, session: Session, upload_id: str, actor: str) -> None:
        """Forget an upload; doing it again changes nothing."""
        if row := repository.get_upload(session, upload_id):
            session.delete(row)
            self._tell(session, row, "discarded", actor, row.state, None)
        self._path(upload_id).unlink(missing_ok=True)

    def purge(self, session: Session) -> int:
        """Forget what was begun more than a week ago; return how many."""
        old = repository.begun_before(session, format_time(self._clock() - KEPT))
        with self._busy_turn:
            idle = [row.id for row in old if row.id not in self._busy]
        for upload_id in idle:
            self.discard(session, upload_id, "")
        return len(idle)

    def _tell(
        self,
        session: Session,
        row: UploadRow,
        what: str,
        actor: str,
        before: str | None,
        after: str | None,
    ) -> None:
        self._events.record(
            session,
            type=f"upload.{what}",
            step=Step.ACCEPT,
            subject=f"uploads/{row.id}",
            message=f"The upload of {row.digest} is {what}.",
            actor=actor,
            data={"digest": row.digest, "size": row.size},
            before={"state": before} if before else None,
            after={"state": after} if after else None,
        )

    def _find(self, session: Session, upload_id: str) -> UploadRow:
        row = repository.get_upload(session, upload_id)
        if row is None:
            raise NotFoundError(
                f"There is no upload {upload_id[:80]!r}.",
                hint="POST /v1/uploads begins one; unfinished ones are kept for a week.",
            )
        return row

    def _progress(self, row: UploadRow) -> Progress:
        if row.state == COMPLETE:
            return Progress(row.id, row.digest, row.size, row.size, COMPLETE)
        path = self._path(row.id)
        # Its file is gone once the blob is in place, even if the crash came before the commit.
        offset = path.stat().st_size if path.exists() else 0
        if not path.exists() and self.blobs.has(row.digest):
            return Progress(row.id, row.digest, row.size, row.size, COMPLETE)
        return Progress(row.id, row.digest, row.size, offset, OPEN)

    def _path(self, upload_id: str) -> Path:
        return self._folder / upload_id


class Receiver:
    """Writes what arrives, never beyond the size that was announced.

    Args:
        file: Open for appending.
        size: Announced size in bytes.
        offset: Bytes that the file has.
        release: Called when it is closed.
    """

    def __init__(self, file: BinaryIO, size: int, offset: int, release: Callable[[], None]) -> None:
        self._file = file
        self._size = size
        self._release = release
        self.offset = offset

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            TooLargeError: More than was announced; nothing of `data` is kept.
            UnavailableError: The disk does not take them.
        """
        if self.offset + len(data) > self._size:
            raise TooLargeError(
                f"The upload was announced with {self._size} bytes and more came.",
                hint="Begin another with the right size and digest.",
            )
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise UnavailableError(
                f"The upload cannot be stored: {error.strerror}.",
                code="storage",
                hint="Look at the server's disk, then go on with the upload.",
            ) from error
        self.offset += len(data)

    def close(self, rest: bytes = b"") -> None:
        """Write the rest and bring all of it to disk; raises as `write`."""
        try:
            self.write(rest)
        finally:
            try:
                os.fsync(self._file.fileno())
                self._file.close()
            finally:
                self._release()
