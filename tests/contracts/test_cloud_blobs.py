"""What every blob store of the fleet manager must do: the folder on disk, and its fake."""

from __future__ import annotations

import json

import pytest

from edgefleet_cloud.blobs.disk import DiskBlobs
from edgefleet_cloud.errors import NotFoundError, RangeError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from tests.fakes.memory_blobs import MemoryBlobs

DATA = bytes(range(256)) * 3000  # several chunks
DIGEST = sha256_digest(DATA)
ABSENT = sha256_digest(b"absent")


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    """Every adapter, empty."""
    return DiskBlobs(tmp_path / "blobs") if request.param == "disk" else MemoryBlobs()


def _put(store, tmp_path, data=DATA):
    finished = tmp_path / "finished"
    finished.write_bytes(data)
    blob = store.put(finished, sha256_digest(data))
    assert not finished.exists()
    return blob


def _read(store, digest, *span):
    with store.open(digest, *span) as chunks:
        return b"".join(chunks)


def test_what_was_put_is_there(store, tmp_path):
    """A blob has its digest, its size and its bytes."""
    assert not store.has(DIGEST)
    assert _put(store, tmp_path) == (DIGEST, len(DATA))
    assert store.has(DIGEST)
    assert store.stat(DIGEST).size == len(DATA)
    assert _read(store, DIGEST) == DATA


def test_putting_it_again_changes_nothing(store, tmp_path):
    """The second file of one digest is taken, and the blob stays."""
    _put(store, tmp_path)
    assert _put(store, tmp_path) == (DIGEST, len(DATA))
    assert _read(store, DIGEST) == DATA


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (0, 1), (5, 10), (255_999, 300_000), (767_999, 1), (767_999, 99), (768_000, 5)],
)
def test_ranges(store, tmp_path, start, length):
    """A range gives exactly its bytes, and ends where the blob does."""
    _put(store, tmp_path)
    assert _read(store, DIGEST, start, length) == DATA[start : start + length]


def test_the_rest(store, tmp_path):
    """Without a length everything from the start on is read."""
    _put(store, tmp_path)
    assert _read(store, DIGEST, 700_000) == DATA[700_000:]


@pytest.mark.parametrize("start", [-1, 768_001])
def test_beyond_the_end(store, tmp_path, start):
    """A range that begins outside of the blob is refused."""
    _put(store, tmp_path)
    with pytest.raises(RangeError):
        _read(store, DIGEST, start)


def test_an_empty_blob(store, tmp_path):
    """A blob may be empty."""
    assert _put(store, tmp_path, b"").size == 0
    assert _read(store, sha256_digest(b"")) == b""


def test_absent(store):
    """What is not there is not found, and reading it fails before a byte is given."""
    assert not store.has(ABSENT)
    with pytest.raises(NotFoundError):
        store.stat(ABSENT)
    with pytest.raises(NotFoundError):
        _read(store, ABSENT)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "sha256:../x", "sha512:00"])
def test_a_digest_is_a_digest(store, digest):
    """Nothing but a digest reaches the store: no path, no other algorithm."""
    with pytest.raises(InvalidInputError):
        store.has(digest)
    with pytest.raises(InvalidInputError):
        store.stat(digest)


def test_a_tagged_image_is_a_blob(store):
    """An image manifest can be read by its digest once it is tagged, however often."""
    image = json.dumps({"artifactType": "a/b"}).encode()
    store.tag("digits-1.0.0", image)
    store.tag("digits-1.0.0", image)
    assert _read(store, sha256_digest(image)) == image
