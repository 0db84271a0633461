"""Section D, the way in: servers that send too much, too slowly, or something else; bad paths."""

from __future__ import annotations

import gzip
import resource
import socket
import ssl
import threading
import time
import unicodedata
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet_agent.config import Store as StoreConfig
from edgefleet_agent.fetch import Fetcher
from edgefleet_agent.store import Store
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import decode_manifest
from tests.adversarial.manifests import manifest_with, sign_bytes
from tests.adversarial.raw_server import RawServer, answer, drip
from tests.agent.running import Agent
from tests.agent.world import World, until

BODY = bytes(range(256)) * 1000
DIGEST = sha256_digest(BODY)


class Fetch:
    """One fetch of `BODY` in a thread, from a server that a test scripts."""

    def __init__(self, folder: Path, script, tls=None, **config) -> None:
        self.store = Store(folder / "store", 10_000_000)
        self.server = RawServer(script, tls)
        self.errors: list = []
        self.stop = threading.Event()
        settings = StoreConfig(**{"fetch_stall_s": 0.6, "fetch_min_bytes_per_s": 256, **config})
        self._fetcher = Fetcher(self.store, settings, lambda _: "DSSE x", self.errors.append)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._fetcher.fetch(self.server.url, DIGEST, len(BODY), self.stop, lambda _: None)

    def fails_with(self, code: str, seconds: float = 10.0):
        """Wait for the first refusal; nothing may be among the blobs then."""
        error = until(lambda: self.errors and self.errors[0], code, seconds)
        assert error.code == code, error
        assert not self.store.has(DIGEST, len(BODY))
        partial = self.store.partial(DIGEST)
        assert not partial.exists() or partial.stat().st_size <= len(BODY)
        return error

    def ends_well_with(self, script) -> None:
        """The server comes to its senses: the blob arrives, whole."""
        self.server.script = script
        self.thread.join(20)
        assert self.store.read(DIGEST, len(BODY)) == BODY

    def close(self) -> None:
        self.stop.set()
        self.server.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def fetch(tmp_path):
    """Start a fetch; it is ended with the test."""
    running: list[Fetch] = []

    def start(script, tls=None, **config) -> Fetch:
        running.append(Fetch(tmp_path, script, tls, **config))
        return running[-1]

    yield start
    for one in running:
        one.close()


def honest(connection: socket.socket, headers: dict[str, str]) -> None:
    """Serve the blob, or the rest of it."""
    asked = headers.get("range", "")
    start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
    span = f"Content-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    whole = answer("200 OK", BODY)
    connection.sendall(answer("206 Partial", BODY[start:], span) if asked else whole)


def endless(connection: socket.socket, _: dict[str, str]) -> None:
    """Send the blob without a length, and never stop."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY)
    while True:
        connection.sendall(bytes(65536))


def endless_chunks(connection: socket.socket, _: dict[str, str]) -> None:
    """The same in chunks."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(lambda c, _: c.sendall(answer("200 OK", BODY + b"x")), id="one byte more"),
        pytest.param(endless, id="endless"),
        pytest.param(endless_chunks, id="endless, in chunks"),
    ],
)
def test_32_a_server_that_does_not_stop_is_cut_at_the_signed_length(fetch, script):
    """Not one byte more than was signed reaches the disk, and what did is deleted."""
    one = fetch(script)
    one.fails_with("too_long")
    one.ends_well_with(honest)
    assert list(one.store.partial(DIGEST).parent.iterdir()) == []


def test_32_a_redirect_with_an_endless_body_is_not_read(fetch):
    """Only the last answer's body is read, so that a redirect fills no memory."""

    def script(connection, _):
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = fetch(script)
    assert "redirect" in one.fails_with("fetch_failed").message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    one.ends_well_with(honest)


def test_32_a_body_that_would_inflate_is_taken_as_it_is(fetch):
    """A gzip bomb under Content-Encoding is bytes like any others: they do not hash to the name."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    bomb = bomb + bytes(len(BODY) - len(bomb)) if len(bomb) < len(BODY) else bomb[: len(BODY)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = fetch(lambda c, _: c.sendall(answer("200 OK", bomb, "Content-Encoding: gzip")))
    one.fails_with("digest_mismatch")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    one.ends_well_with(honest)


def dripped(what: str):
    """Return a script that sends a byte every 50 ms from some part of the answer on."""
    whole = answer("200 OK", BODY)
    at = {"headers": 0, "body": whole.index(b"\r\n\r\n") + 4 + 100_000}.get(what, 0)
    if what == "a chunk's length":
        whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 4000
        at = len(whole) - 4000

    def script(connection, _):
        connection.sendall(whole[:at])
        drip(connection, whole[at:], 0.05)

    return script


@pytest.mark.parametrize("what", ["headers", "a chunk's length", "body"])
def test_33_a_byte_now_and_then_is_given_up_and_resumed(fetch, what):
    """Under the lowest rate the connection is left, wherever it drips; what came is kept."""
    begun = time.monotonic()
    one = fetch(dripped(what))
    one.fails_with("too_slow")
    assert time.monotonic() - begun < 5
    one.ends_well_with(honest)
    resumed = one.server.requests[-1].get("range", "")
    assert (int(resumed.removeprefix("bytes=").rstrip("-")) >= 100_000) if what == "body" else True


def test_33_tls_is_watched_from_its_first_byte(fetch, tmp_path, monkeypatch):
    """A handshake that drips is left too; with a server that keeps time the blob comes by HTTPS."""
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def stall(connection):
        time.sleep(0.2)
        drip(connection, b"\x16\x03\x03\x40\x00" + bytes(4000), 0.05)

    one = fetch(honest, tls=stall)
    one.fails_with("too_slow")
    one.server.tls = lambda connection: context.wrap_socket(connection, server_side=True)
    one.ends_well_with(honest)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def test_33_a_stalled_fetch_ends_at_once_when_nobody_wants_it(fetch):
    """A newer assignment does not wait for a server that has fallen silent."""
    one = fetch(lambda c, _: c.recv(1), fetch_stall_s=60.0)
    until(lambda: one.server.requests)
    begun = time.monotonic()
    one.stop.set()
    one.thread.join(5)
    assert time.monotonic() - begun < 2


def cut_at(count: int):
    """Return a script that sends only the blob's beginning."""
    return lambda c, _: c.sendall(answer("200 OK", BODY[:count], length=len(BODY)))


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        pytest.param("206 Partial", ("Content-Range: bytes 0-9/10",), BODY, id="another offset"),
        pytest.param("206 Partial", (), BODY, id="no offset"),
        pytest.param(
            "206 Partial",
            (f"Content-Range: bytes 1000-{len(BODY) - 1}/{len(BODY)}", 'ETag: "other"'),
            bytes(len(BODY) - 1000),
            id="changed ETag, other bytes",
        ),
        pytest.param("416 Range", (), b"", id="no such range"),
    ],
)
def test_34_a_wrong_range_never_becomes_a_blob(fetch, status, headers, body):
    """The hash of the whole decides: a wrong part is thrown away and all is fetched from zero."""
    one = fetch(cut_at(1000))
    until(lambda: one.errors)
    one.server.script = lambda c, _: c.sendall(answer(status, body, *headers))
    until(lambda: len(one.errors) > 1)
    assert one.server.requests[1]["range"] == "bytes=1000-"
    assert not one.store.has(DIGEST, len(BODY))
    one.ends_well_with(honest)
    assert "range" not in one.server.requests[-1]


BAD_PATHS = {
    "parent": ["../x"], "parent inside": ["a/../../x"], "absolute": ["/x"], "empty part": ["a//b"],
    "hidden": [".git/x"], "hidden inside": ["a/.ssh/x"], "dot": ["./x"], "case": ["A", "a"],
    "case inside": ["m/A", "M/a"], "twice": ["a", "a"], "long": ["x" * 300], "nul": ["a\0b"],
    "empty": [""], "folder": ["a/"], "backslash": ["a\\b"], "newline": ["a\nb"], "blank": ["a b"],
    "composed": [unicodedata.normalize("NFC", "é")],
    "composed and not": [unicodedata.normalize(form, "modèle") for form in ("NFC", "NFD")],
    "kelvin": ["K", "K"], "right to left": ["a\u202eb"], "lone surrogate": ["a\ud800"],
    "drive": ["C:x"], "stream": ["x:$DATA"], "tilde": ["~root/x"],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PATHS)
def test_35_a_path_that_may_mean_two_things_refuses_the_whole_manifest(case):
    """No path is mended: the manifest is refused, before anything is fetched."""
    decode_manifest(manifest_with("model.onnx"))
    with pytest.raises(InvalidInputError) as caught:
        decode_manifest(manifest_with(*BAD_PATHS[case]))
    assert caught.value.code in {"manifest_path", "malformed"}


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.mark.parametrize("case", ["parent", "nul", "composed and not"])
def test_35_a_signed_manifest_with_such_a_path_is_rejected_by_the_device(world, case):
    """Though a publisher signed it: rejected, no blob of it is asked for, and 1.0.0 serves on."""
    agent = Agent(world).start()
    try:
        one = world.publish("1.0.0")
        agent.assign(one)
        agent.reaches("succeeded")
        asked = len(world.server.ranges)
        agent.assign(sign_bytes(world, manifest_with(*BAD_PATHS[case])))
        report = agent.reaches("rejected")
        assert report["reason"] in {"manifest_path", "malformed"}
        assert len(world.server.ranges) == asked + 1  # the manifest itself
        assert agent.gateway.routed("digits") == one.manifest
    finally:
        agent.close()
