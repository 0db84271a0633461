"""Blobs on disk: immutable, named by their sha256, hashed again before every use."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from edgefleet_agent import durable
from edgefleet_agent.errors import StoreFullError
from edgefleet_shared.errors import TrustError, UnavailableError
from edgefleet_shared.identifiers import check_digest

CHUNK = 1024 * 1024
RESERVE = 16 * 1024 * 1024
"""Bytes of the disk that packages never take: journal, floors and outbox must go on."""


def blob_path(folder: Path, digest: str) -> Path:
    """Return where a blob lies, or would lie, in the store at `folder`."""
    return folder / "blobs" / "sha256" / _hex(digest)


class Store:
    """Content-addressed blobs and the partial downloads beside them.

    Args:
        folder: `<state_dir>/store`.
        max_bytes: Quota for blobs and partials together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._blobs = durable.make_folder(folder / "blobs" / "sha256")
        self._partial = durable.make_folder(folder / "partial")
        self._max_bytes = max_bytes

    def path(self, digest: str) -> Path:
        """Return where a blob lies, or would lie."""
        return self._blobs / _hex(digest)

    def partial(self, digest: str) -> Path:
        """Return where a download of a blob collects."""
        return self._partial / _hex(digest)

    def has(self, digest: str, size: int) -> bool:
        """Return whether a blob of that length is here; its bytes are judged on `open_verified`."""
        try:
            return self.path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def open_verified(self, digest: str, size: int) -> int:
        """Return a read-only descriptor whose bytes were just hashed through itself.

        Raises:
            UnavailableError: The blob is not here (code `blob_missing`).
            TrustError: Its bytes have changed (code `blob_corrupt`); it has been removed.
        """
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self.path(digest), flags)
        except OSError as error:
            raise UnavailableError(f"{digest} is not here.", code="blob_missing") from error
        try:
            status = os.fstat(fd)
            # Another name for the same bytes is another way to write to them.
            alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if alone and status.st_size == size and hash_fd(fd) == digest:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        self.remove(digest)
        raise TrustError(
            f"The stored blob {digest} no longer has the bytes that were signed.",
            code="blob_corrupt",
            hint="It is fetched again from the start.",
        )

    def read(self, digest: str, size: int) -> bytes:
        """Return a small blob's verified bytes.

        Raises:
            UnavailableError: As `open_verified`.
            TrustError: As `open_verified`.
        """
        fd = self.open_verified(digest, size)
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            return file.read(size)

    def commit(self, digest: str) -> None:
        """Move a complete, hashed partial among the blobs, durably and read-only."""
        partial = self.partial(digest)
        fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        finally:
            os.close(fd)
        partial.replace(self.path(digest))
        durable.fsync_folder(self._blobs)

    def remove(self, digest: str) -> None:
        """Forget a blob and its partial."""
        self.path(digest).unlink(missing_ok=True)
        self.partial(digest).unlink(missing_ok=True)

    def used(self) -> int:
        """Return the bytes that blobs and partials take."""
        return sum(_size(path) for path in self._files())

    def collect(self, keep: Iterable[str]) -> int:
        """Remove every blob and partial but those of the digests in `keep`; return the bytes."""
        names, freed = {_hex(digest) for digest in keep}, 0
        for path in self._files():
            if path.name not in names:
                freed += _size(path)
                path.unlink(missing_ok=True)
        return freed

    def make_room(self, size: int, keep: Iterable[str]) -> None:
        """Make room for `size` more bytes, first by removing what is not in `keep`.

        Raises:
            StoreFullError: There is no room even then.
        """
        if self._lacks(size) <= 0:
            return
        self.collect(keep)
        if (lacking := self._lacks(size)) > 0:
            raise StoreFullError(
                f"The package needs {size} bytes and the store lacks {lacking}.",
                hint="Raise store.max_bytes, free the disk, or stop a slot.",
            )

    def _lacks(self, size: int) -> int:
        free = shutil.disk_usage(self._blobs).free - RESERVE
        return size - min(self._max_bytes - self.used(), free)

    def _files(self) -> list[Path]:
        return [path for folder in (self._blobs, self._partial) for path in folder.iterdir()]


def _size(path: Path) -> int:
    """Return a file's length, 0 if another slot has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def hash_fd(fd: int) -> str:
    """Return the digest of everything that a descriptor reads, without moving its position."""
    hasher, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, CHUNK, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return "sha256:" + hasher.hexdigest()


def hash_file(path: Path) -> str:
    """Return the digest of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hash_fd(file.fileno())


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")
