"""What came by hand: desired documents and the blobs that go with them, each in a folder.

`<state_dir>/inbox/<name>/` holds `desired.json` and `blobs/sha256/<hex>`. It appears whole, by a
rename, and goes once its deployments are over. Nothing in it is believed: the document is judged
and every blob hashed as if a network had brought them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from edgefleet_agent import durable
from edgefleet_agent.errors import StoreFullError
from edgefleet_agent.store import Store
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest
from edgefleet_shared.messages import DESIRED_MAX_BYTES

CHUNK = 1024 * 1024
DOCUMENT = "desired.json"
BLOBS = Path("blobs") / "sha256"


class Inbox:
    """The folder as agentd sees it.

    Args:
        folder: `<state_dir>/inbox`.
        store: Where blobs go.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = durable.make_folder(folder)
        self._store = store

    def names(self) -> list[str]:
        """Return the names of what is there, oldest first."""
        return sorted(path.name for path in self._folder.iterdir() if path.name[0] != ".")

    def document(self, name: str) -> bytes:
        """Return the desired document of an entry, at most as long as one may be and one byte.

        Raises:
            InvalidInputError: It is not there (code `malformed`).
        """
        return read_document(self._folder / name / DOCUMENT)

    def remove(self, name: str) -> None:
        """Forget an entry."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def bring(self, digest: str, size: int, stop: threading.Event) -> bool:
        """Bring a blob from here into the store; return whether it is there now.

        Raises:
            StoreFullError: The disk is full.
        """
        for name in self.names():
            path = self._folder / name / BLOBS / check_digest(digest).removeprefix("sha256:")
            if path.exists() and self._copy(path, digest, size, stop):
                return True
        return False

    def _copy(self, path: Path, digest: str, size: int, stop: threading.Event) -> bool:
        partial = self._store.partial(digest)
        hasher, length = hashlib.sha256(), 0
        try:
            with partial.open("wb") as file:
                for chunk in chunks(path):
                    length += len(chunk)
                    if stop.is_set() or length > size:
                        return False
                    hasher.update(chunk)
                    file.write(chunk)
            if length == size and "sha256:" + hasher.hexdigest() == digest:
                self._store.commit(digest)
                return True
        except OSError as error:
            raise StoreFullError(
                f"The blob cannot be copied: {error.strerror or error}.",
                hint="Free the disk; the deployment can be assigned again.",
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return False


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a regular file; of a link, a pipe or a device nothing.

    Raises:
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while stat.S_ISREG(os.fstat(fd).st_mode) and (chunk := os.read(fd, CHUNK)):
            yield chunk
    finally:
        os.close(fd)


def read_document(path: Path) -> bytes:
    """Return a desired document's bytes, at most as long as one may be and one byte more.

    Raises:
        InvalidInputError: It cannot be read (code `malformed`).
    """
    data = b""
    try:
        for chunk in chunks(path):
            data += chunk
            if len(data) > DESIRED_MAX_BYTES:
                break
    except OSError as error:
        raise InvalidInputError(
            f"The desired document {path} cannot be read: {error.strerror or error}.",
            code="malformed",
            hint="`edgefleet device export-bundle DEVICE FOLDER` writes one.",
        ) from error
    return data[: DESIRED_MAX_BYTES + 1]
