"""Blobs: what arrives is what was signed, whatever the server, the network or the disk do."""

from __future__ import annotations

import os
import resource
import threading

import pytest

from edgefleet_agent import durable
from edgefleet_agent.config import Store as StoreConfig
from edgefleet_agent.errors import StoreFullError
from edgefleet_agent.fetch import Fetcher
from edgefleet_agent.store import Store
from edgefleet_shared.errors import InvalidInputError, TrustError, UnavailableError
from edgefleet_shared.identifiers import sha256_digest
from tests.agent.blob_server import BlobServer
from tests.agent.world import until

BODY = bytes(range(256)) * 2000
DIGEST = sha256_digest(BODY)


@pytest.fixture
def server():
    """A server that has one blob."""
    server = BlobServer({DIGEST: BODY})
    yield server
    server.close()


@pytest.fixture
def store(tmp_path):
    """An empty store of 10 MB."""
    return Store(tmp_path / "store", 10_000_000)


class Fetching:
    """A fetcher and everything that it was told."""

    def __init__(self, store, server, **config):
        self.store, self.server = store, server
        self.errors: list[Exception] = []
        self.progress: list[int] = []
        self.stop = threading.Event()
        self.fetcher = Fetcher(
            store, StoreConfig(**config), lambda _: "DSSE cam-1.x", self.errors.append
        )

    def run(self) -> bool:
        return self.fetcher.fetch(
            self.server.url, DIGEST, len(BODY), self.stop, self.progress.append
        )


@pytest.fixture
def fetching(store, server):
    """A fetcher with the default limits."""
    return Fetching(store, server)


def read(store) -> bytes:
    """Return the stored blob's bytes, verified."""
    return store.read(DIGEST, len(BODY))


def test_a_blob_arrives_whole_read_only_and_with_our_name_on_the_request(fetching):
    """It lies under its digest with mode 0444, and the request was signed."""
    assert fetching.run()
    path = fetching.store.path(DIGEST)
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o444
    assert fetching.server.authorizations == ["DSSE cam-1.x"]
    assert fetching.progress[-1] == len(BODY)
    assert fetching.errors == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed(fetching, ranges):
    """What came is kept; the rest comes by Range, or all of it where Range is unknown."""
    fetching.server.ignore_range = not ranges
    fetching.server.cut[DIGEST] = 200_000
    threading.Timer(0.2, fetching.server.cut.clear).start()
    assert fetching.run()
    assert read(fetching.store) == BODY
    assert fetching.server.ranges[0] == ""
    assert fetching.server.ranges[1] == "bytes=200000-"


def test_what_an_earlier_process_left_is_hashed_and_used(fetching):
    """Only the missing end is asked for."""
    fetching.store.partial(DIGEST).write_bytes(BODY[:300_000])
    assert fetching.run()
    assert fetching.server.ranges == ["bytes=300000-"]


def test_a_whole_partial_needs_no_server(fetching):
    """Killed between the last byte and the rename: nothing is asked for."""
    fetching.store.partial(DIGEST).write_bytes(BODY)
    assert fetching.run()
    assert fetching.server.ranges == []


@pytest.mark.parametrize("left", [b"X" * 1000, BODY + b"more"])
def test_a_partial_that_is_wrong_costs_one_more_try(fetching, left):
    """Foreign bytes at the front end in a wrong hash; all is thrown away and fetched from zero."""
    fetching.store.partial(DIGEST).write_bytes(left)
    assert fetching.run()
    assert read(fetching.store) == BODY
    assert fetching.server.ranges[-1] == ""


def test_a_flipped_bit_is_refused_and_fetched_from_zero(fetching):
    """The wrong bytes never get a place among the blobs."""
    fetching.server.flip.add(DIGEST)
    thread = threading.Thread(target=fetching.run)
    thread.start()
    until(lambda: fetching.errors)
    assert not fetching.store.has(DIGEST, len(BODY))
    fetching.server.flip.clear()
    thread.join(10)
    assert fetching.errors[0].code == "digest_mismatch"
    assert fetching.server.ranges[-1] == ""
    assert read(fetching.store) == BODY


def test_a_blob_that_is_not_there_is_asked_for_until_it_is(fetching):
    """404 is no end: the deployment is wanted, and the server may get the blob yet."""
    del fetching.server.blobs[DIGEST]
    thread = threading.Thread(target=fetching.run)
    thread.start()
    until(lambda: fetching.errors)
    assert fetching.errors[0].code == "http_404"
    fetching.server.blobs[DIGEST] = BODY
    thread.join(10)
    assert read(fetching.store) == BODY


def test_what_is_no_longer_wanted_ends_at_once(fetching):
    """In the middle of a body and in the middle of a pause alike."""
    fetching.server.hold_at = 100_000
    results = []
    thread = threading.Thread(target=lambda: results.append(fetching.run()))
    thread.start()
    until(lambda: fetching.progress)
    fetching.stop.set()
    fetching.server.go.set()
    thread.join(5)
    assert results == [False]
    assert not fetching.store.has(DIGEST, len(BODY))


def test_a_disk_that_takes_no_more_is_store_full(fetching):
    """A write that fails ends the fetch with a reason, not with a partial that is believed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreFullError):
            fetching.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not fetching.store.has(DIGEST, len(BODY))
    assert fetching.run()


def test_a_flipped_bit_on_disk_is_found_before_use(fetching):
    """The blob is removed and reported; nothing opens it."""
    fetching.run()
    path = fetching.store.path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(BODY[:-1] + b"?")
    with pytest.raises(TrustError) as caught:
        fetching.store.open_verified(DIGEST, len(BODY))
    assert caught.value.code == "blob_corrupt"
    assert not path.exists()


def test_the_descriptor_is_of_the_bytes_that_were_hashed(fetching):
    """Replacing the file after the check changes nothing for who holds the descriptor."""
    fetching.run()
    fd = fetching.store.open_verified(DIGEST, len(BODY))
    durable.atomic_write(fetching.store.path(DIGEST), b"evil")
    assert os.pread(fd, len(BODY), 0) == BODY
    os.close(fd)


def test_a_link_among_the_blobs_is_not_followed(store, tmp_path):
    """A name that leads elsewhere is a blob that is not there."""
    (tmp_path / "elsewhere").write_bytes(BODY)
    store.path(DIGEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError):
        store.open_verified(DIGEST, len(BODY))


@pytest.mark.parametrize("name", ["../../etc/passwd", "sha256:..", "", "sha256:" + "A" * 64])
def test_a_name_that_is_no_digest_reaches_no_file(store, name):
    """Nothing but 64 lower-case hex digits becomes a path."""
    with pytest.raises(InvalidInputError):
        store.path(name)


def test_room_is_made_from_what_nobody_needs(store):
    """The needed blob stays, the other goes, and what does not fit even then is refused."""
    needed, other = (sha256_digest(name) for name in (b"needed", b"other"))
    for digest in (needed, other):
        store.partial(digest).write_bytes(b"x" * 4_000_000)
        store.commit(digest)
    store.make_room(1_000_000, {needed})
    assert store.has(other, 4_000_000)
    store.make_room(5_000_000, {needed})
    assert store.has(needed, 4_000_000)
    assert not store.has(other, 4_000_000)
    with pytest.raises(StoreFullError):
        store.make_room(7_000_000, {needed})
    assert store.has(needed, 4_000_000)
