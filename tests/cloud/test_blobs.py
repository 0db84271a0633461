"""Uploads and blobs over HTTP, and the folder that they lie in."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from edgefleet_cloud.auth.devices import DeviceAccess
from edgefleet_cloud.blobs import ranges
from edgefleet_cloud.blobs.disk import DiskBlobs
from edgefleet_cloud.blobs.service import Uploads
from edgefleet_cloud.errors import RangeError, UnauthenticatedError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.ports import system_clock
from edgefleet_shared import access
from edgefleet_shared.identifiers import sha256_digest
from tests.fleet_folder import small_package

DATA = bytes(range(256)) * 1000
DIGEST = sha256_digest(DATA)


def _begin(cloud, data=DATA, **changes):
    body = {"digest": sha256_digest(data), "size": len(data), **changes}
    return cloud.client.post("/v1/uploads", json=body)


def _send(cloud, upload, offset, data):
    return cloud.client.patch(
        f"/v1/uploads/{upload['id']}", content=data, headers={"Upload-Offset": str(offset)}
    )


def _refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_in_pieces(cloud):
    """An upload in three pieces is a blob after the last, and not before."""
    upload = _begin(cloud).json()
    assert (upload["offset"], upload["state"]) == (0, "open")
    for start, end in ((0, 1000), (1000, 200_000)):
        assert _send(cloud, upload, start, DATA[start:end]).json()["offset"] == end
        assert cloud.client.get(f"/v1/uploads/{upload['id']}").json()["offset"] == end
    assert cloud.client.get(f"/v1/blobs/{DIGEST}").status_code == 404
    last = _send(cloud, upload, 200_000, DATA[200_000:]).json()
    assert (last["offset"], last["state"]) == (len(DATA), "complete")
    assert cloud.client.get(f"/v1/uploads/{upload['id']}").json()["state"] == "complete"
    assert cloud.client.get(f"/v1/blobs/{DIGEST}").content == DATA


def test_it_goes_on_after_a_restart(cloud):
    """An upload that a restart interrupted is found again and goes on where it stood."""
    upload = _begin(cloud).json()
    _send(cloud, upload, 0, DATA[:70_000])
    cloud.stop()
    cloud.start()
    again = _begin(cloud).json()
    assert (again["id"], again["offset"]) == (upload["id"], 70_000)
    assert _send(cloud, again, 70_000, DATA[70_000:]).json()["state"] == "complete"


def test_a_broken_connection_keeps_what_came(cloud):
    """Bytes that arrived before the connection broke need not be sent again."""
    upload = _begin(cloud).json()
    with socket.create_connection(("127.0.0.1", int(cloud.url.rpartition(":")[2]))) as raw:
        head = (
            f"PATCH /v1/uploads/{upload['id']} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {cloud.token}\r\nUpload-Offset: 0\r\n"
            f"Content-Length: {len(DATA)}\r\n\r\n"
        )
        raw.sendall(head.encode() + DATA[:5000])
        time.sleep(0.2)
    deadline = time.monotonic() + 10
    path = f"/v1/uploads/{upload['id']}"
    while (stands := cloud.client.get(path).json()["offset"]) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stands == 5000
    assert _send(cloud, upload, stands, DATA[stands:]).json()["state"] == "complete"


def test_what_is_there_need_not_be_sent(cloud):
    """For a stored blob an upload is complete at once."""
    cloud.upload(DATA)
    answer = _begin(cloud)
    assert answer.status_code == 200
    assert answer.json()["state"] == "complete"
    _refused(_begin(cloud, size=len(DATA) + 1), 422, "size")


def test_an_empty_blob(cloud):
    """A blob without bytes is uploaded by sending none."""
    upload = _begin(cloud, b"").json()
    assert _send(cloud, upload, 0, b"").json()["state"] == "complete"
    assert cloud.client.get(f"/v1/blobs/{sha256_digest(b'')}").content == b""


@pytest.mark.parametrize("offset", [0, 999, 1001])
def test_the_offset_must_be_right(cloud, offset):
    """Bytes for another place are refused, with the place where the upload stands."""
    upload = _begin(cloud).json()
    _send(cloud, upload, 0, DATA[:1000])
    answer = _send(cloud, upload, offset, b"x")
    _refused(answer, 409, "wrong_offset")
    assert answer.json()["offset"] == 1000


def test_wrong_bytes_are_thrown_away(cloud):
    """If the digest does not come out, nothing is stored and the upload is gone."""
    upload = _begin(cloud).json()
    _refused(_send(cloud, upload, 0, DATA[:-1] + b"x"), 422, "digest_mismatch")
    _refused(cloud.client.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")
    _refused(cloud.client.get(f"/v1/blobs/{DIGEST}"), 404, "not_found")
    assert list((cloud.config.data / "uploads").iterdir()) == []


def test_no_more_than_announced(cloud):
    """Bytes beyond the announced size are refused, and what was right before stays."""
    upload = _begin(cloud).json()
    _send(cloud, upload, 0, DATA[:1000])
    _refused(_send(cloud, upload, 1000, DATA), 413, "too_large")
    assert cloud.client.get(f"/v1/uploads/{upload['id']}").json()["offset"] == 1000


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"digest": "md5:00"}, 422, "invalid_digest"),
        ({"size": -1}, 422, "validation"),
        ({"size": 2**53 - 1}, 413, "too_large"),
        ({"size": "big"}, 422, "validation"),
        ({"extra": 1}, 422, "validation"),
    ],
)
def test_bad_beginnings(cloud, changes, status, code):
    """An upload that cannot be is refused when it begins."""
    _refused(_begin(cloud, **changes), status, code)


def test_bad_continuations(cloud):
    """Unknown uploads, no offset, a bad offset, a complete upload: each refused."""
    upload = _begin(cloud).json()
    path = f"/v1/uploads/{upload['id']}"
    _refused(cloud.client.patch("/v1/uploads/x", headers={"Upload-Offset": "0"}), 404, "not_found")
    _refused(cloud.client.get("/v1/uploads/..%2Ffleet.db"), 404, "not_found")
    _refused(cloud.client.patch(path, content=DATA), 422, "validation")
    _refused(cloud.client.patch(path, headers={"Upload-Offset": "-1"}), 422, "validation")
    _send(cloud, upload, 0, DATA)
    _refused(_send(cloud, upload, 0, DATA), 409, "upload_complete")


@pytest.mark.parametrize(
    ("header", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=255990-", 206, 255_990, 256_000),
        ("bytes=-5", 206, 255_995, 256_000),
        ("bytes=-999999999", 206, 0, 256_000),
        ("bytes=0-999999999", 206, 0, 256_000),
        ("bytes=5-4", 200, 0, 256_000),
        ("bytes=0-1,5-6", 200, 0, 256_000),
        ("items=0-1", 200, 0, 256_000),
    ],
)
def test_ranges(cloud, header, status, start, end):
    """One range is answered 206 with its bytes; what is none, with the whole."""
    cloud.upload(DATA)
    answer = cloud.client.get(f"/v1/blobs/{DIGEST}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (status, DATA[start:end])
    assert answer.headers["etag"] == f'"{DIGEST}"'
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize("header", ["bytes=256000-", "bytes=999999-1000000", "bytes=-0"])
def test_ranges_beyond_the_end(cloud, header):
    """A range without a byte is a 416 that tells the size."""
    cloud.upload(DATA)
    answer = cloud.client.get(f"/v1/blobs/{DIGEST}", headers={"Range": header})
    _refused(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


@given(st.text(alphabet="bytes=-0123456789, ", max_size=30), st.integers(0, 300))
def test_any_range_header_is_bytes_of_the_blob(header, size):
    """Whatever the header, the span lies inside of the blob, or the header is refused."""
    try:
        span = ranges.parse("bytes=" + header, size)
    except RangeError:
        return
    assert span is None or (span.start >= 0 and 1 <= span.length <= size - span.start)


def test_conditions_and_head(cloud):
    """HEAD tells the size; If-None-Match spares the bytes; a foreign If-Range gives the whole."""
    cloud.upload(DATA)
    path = f"/v1/blobs/{DIGEST}"
    head = cloud.client.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(DATA)))
    assert head.headers["accept-ranges"] == "bytes"
    assert "immutable" in head.headers["cache-control"]
    same = cloud.client.get(path, headers={"If-None-Match": f'"{DIGEST}"'})
    assert (same.status_code, same.content) == (304, b"")
    other = cloud.client.get(path, headers={"Range": "bytes=0-0", "If-Range": '"x"'})
    assert (other.status_code, len(other.content)) == (200, len(DATA))
    assert cloud.client.head(f"/v1/blobs/{sha256_digest(b'none')}").status_code == 404


def test_nobody_reads_blobs_without_proof(cloud):
    """Without a token or a device's signature there are no blobs, for a garbled one neither."""
    cloud.upload(DATA)
    for header in ({}, {"Authorization": "DSSE cam-1.e30="}, {"Authorization": "DSSE x"}):
        answer = cloud.anyone.get(f"/v1/blobs/{DIGEST}", headers=header)
        _refused(answer, 401, "unauthenticated")


class _OneDevice:
    def __init__(self, key):
        self._key = key

    def key_of(self, device_id):
        return self._key if device_id == "cam-1" else None


def test_a_device_proves_itself():
    """A statement by the enrolled key is believed; another key, fleet, device or time is not."""
    signer, now = CryptoSigner.generate_ecdsa(), datetime.now(UTC)
    guard = DeviceAccess("demo", "http://here", _OneDevice(signer.public_key), lambda: now)
    soon = now + timedelta(hours=1)
    assert guard.check(access.header("demo", "cam-1", "http://here", soon, signer)) == "cam-1"
    for header in (
        access.header("demo", "cam-1", "http://here", soon, CryptoSigner.generate_ecdsa()),
        access.header("other", "cam-1", "http://here", soon, signer),
        access.header("demo", "cam-2", "http://here", soon, signer),
        access.header("demo", "cam-1", "http://here", now - timedelta(seconds=1), signer),
        access.header("demo", "cam-1", "http://here", now + timedelta(days=2), signer),
    ):
        with pytest.raises(UnauthenticatedError):
            guard.check(header)


def test_the_folder_is_an_oci_image_layout(cloud):
    """What is published can be walked from index.json to every file, as OCI tools do."""
    manifest, data, blobs = small_package()
    cloud.publish(manifest, data, blobs)
    folder = cloud.config.data / "blobs"
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_bytes())
    (entry,) = index["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "digits-1.0.0"

    def blob(descriptor):
        content = (folder / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        assert (sha256_digest(content), len(content)) == (descriptor["digest"], descriptor["size"])
        return content

    image = json.loads(blob(entry))
    assert image["artifactType"] == entry["artifactType"]
    assert blob(image["config"]) == data
    assert [blob(layer) for layer in image["layers"]] == list(blobs.values())


def test_old_uploads_are_purged(database, tmp_path):
    """An upload that nobody continued for a week is forgotten, a younger one is not."""
    now = system_clock()
    clock = iter([now - timedelta(days=8), now, now])
    log = EventLog(EventFeed())
    uploads = Uploads(DiskBlobs(tmp_path / "b"), tmp_path / "u", 10**6, log, lambda: next(clock))
    with database.write() as session:
        old, young = (
            uploads.begin(session, sha256_digest(d), 1, "token/admin") for d in (b"a", b"b")
        )
    with database.write() as session:
        assert uploads.purge(session) == 1
    assert [path.name for path in (tmp_path / "u").iterdir()] == [young.id]
    assert old.id != young.id
