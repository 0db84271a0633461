"""Blobs in memory: the port, without a disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefleet_cloud.errors import NotFoundError, RangeError
from edgefleet_cloud.ports import Blob
from edgefleet_shared.identifiers import check_digest, sha256_digest


class MemoryBlobs:
    """The port Blobs over a dict."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}

    def has(self, digest: str) -> bool:
        """Return whether the blob is stored."""
        return check_digest(digest) in self.blobs

    def stat(self, digest: str) -> Blob:
        """Return digest and size."""
        if not self.has(digest):
            raise NotFoundError(f"There is no blob {digest}.")
        return Blob(digest, len(self.blobs[digest]))

    @contextmanager
    def open(
        self, digest: str, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Yield the bytes of a range."""
        size = self.stat(digest).size
        if not 0 <= start <= size:
            raise RangeError(f"{digest} has {size} bytes.")
        end = size if length is None else start + length
        yield iter([self.blobs[digest][start:end]])

    def put(self, finished: Path, digest: str) -> Blob:
        """Take a finished file out of its place."""
        self.blobs.setdefault(check_digest(digest), finished.read_bytes())
        finished.unlink()
        return self.stat(digest)

    def tag(self, name: str, image: bytes) -> None:
        """Store an image manifest and name it."""
        self.tags[name] = sha256_digest(image)
        self.blobs[self.tags[name]] = image
