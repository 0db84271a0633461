"""Blobs in a folder in OCI image layout, which any OCI tool can read or copy to a registry.

Source: opencontainers/image-spec 1.1, image-layout.md: `oci-layout`, `index.json`,
`blobs/sha256/<hex>`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edgefleet_cloud import durable
from edgefleet_cloud.errors import NotFoundError, RangeError
from edgefleet_cloud.ports import Blob
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest, sha256_digest

CHUNK_BYTES = 256 * 1024
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
_NAME = "org.opencontainers.image.ref.name"


class DiskBlobs:
    """A port Blobs over one folder; it survives a power cut at any point.

    Args:
        folder: Made if it is not there. Finished uploads must lie on the same file system.

    Raises:
        InvalidInputError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._index_turn = threading.Lock()
        try:
            durable.make_folder(self._blobs)
            if not (folder / "index.json").exists():
                self._write_index([])
            if not (folder / "oci-layout").exists():
                durable.write(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        except OSError as error:
            raise InvalidInputError(
                f"The blob folder {folder} cannot be used: {error}.", code="configuration"
            ) from error

    def has(self, digest: str) -> bool:
        """Return whether the blob is stored, whole."""
        return self._path(digest).is_file()

    def stat(self, digest: str) -> Blob:
        """Return digest and size.

        Raises:
            NotFoundError: There is no such blob.
        """
        try:
            return Blob(digest, self._path(digest).stat().st_size)
        except FileNotFoundError:
            raise _absent(digest) from None

    @contextmanager
    def open(
        self, digest: str, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Yield the bytes from `start`, `length` of them or all the rest, in chunks.

        Raises:
            NotFoundError: There is no such blob.
            RangeError: `start` is beyond its end.
        """
        size = self.stat(digest).size
        if not 0 <= start <= size:
            raise RangeError(f"{digest} has {size} bytes; {start} is beyond.")
        end = size if length is None else min(size, start + length)
        with self._path(digest).open("rb") as file:
            file.seek(start)
            yield _chunks(file, end - start)

    def put(self, finished: Path, digest: str) -> Blob:
        """Take a finished file, whose digest has been checked, out of its place; durable after."""
        if self.has(digest):
            finished.unlink()
        else:
            durable.move(finished, self._path(digest))
        return self.stat(digest)

    def tag(self, name: str, image: bytes) -> None:
        """Store an OCI image manifest and list it in the index under `name`."""
        digest = sha256_digest(image)
        if not self.has(digest):
            durable.write(self._path(digest), image)
        entry = {
            "mediaType": IMAGE_TYPE,
            "digest": digest,
            "size": len(image),
            "artifactType": json.loads(image).get("artifactType", IMAGE_TYPE),
            "annotations": {_NAME: name},
        }
        with self._index_turn:
            index = json.loads((self._folder / "index.json").read_bytes())
            others = [m for m in index["manifests"] if m["annotations"].get(_NAME) != name]
            if [*others, entry] != index["manifests"]:
                self._write_index([*others, entry])

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        durable.write(self._folder / "index.json", json.dumps(index, indent=1).encode())

    def _path(self, digest: str) -> Path:
        return self._blobs / check_digest(digest).removeprefix("sha256:")


def _chunks(file: BinaryIO, remaining: int) -> Iterator[bytes]:
    while remaining > 0 and (chunk := file.read(min(CHUNK_BYTES, remaining))):
        remaining -= len(chunk)
        yield chunk


def _absent(digest: str) -> NotFoundError:
    return NotFoundError(
        f"There is no blob {digest}.", hint="Upload it with POST /v1/uploads first."
    )
