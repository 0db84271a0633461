"""`tests/conformance/tuf_client` keeps the contract of the TUF conformance suite, over HTTP."""

from __future__ import annotations

import http.server
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from tuf.api.metadata import Metadata

from tests.agent.world import World

CLIENT = Path(__file__).resolve().parents[1] / "conformance" / "tuf_client"
TOP = ["root.json", "snapshot.json", "targets.json", "timestamp.json"]


class Repository:
    """A TUF repository over HTTP that remembers what was asked."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, []
        self.targets: dict[str, bytes] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                data = outer.find(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def find(self, path: str) -> bytes | None:
        """Return a file of the repository."""
        if path.startswith("/metadata/"):
            return self.world.files.get(path.removeprefix("/metadata/"))
        return self.targets.get(unquote(path.removeprefix("/targets/")))

    def publish(self, version: str) -> str:
        """Publish a manifest and return its target path."""
        slot = self.world.publish(version)
        digest = slot.manifest.removeprefix("sha256:")
        folder = f"models/digits/{version}"
        self.targets[f"{folder}/{digest}.manifest.json"] = self.world.blobs[slot.manifest]
        return f"{folder}/manifest.json"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


class Client:
    """The executable with its folders."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.repository = repository
        self.root = folder / "first.json"
        self.root.write_bytes(repository.world.first_root)

    def run(self, *arguments: str, later: timedelta | None = None) -> int:
        """Run it from a foreign folder and return its exit code."""
        command = [str(CLIENT), "--metadata-dir", str(self.metadata), *arguments]
        if later is not None:
            command = ["faketime", str(datetime.now(UTC) + later), *command]
        return subprocess.run(command, cwd="/", check=False, capture_output=True).returncode

    def init(self) -> int:
        """Pin the first root."""
        return self.run("init", str(self.root))

    def refresh(self, **time: timedelta) -> int:
        """Refresh the top-level roles."""
        return self.run("--metadata-url", self.repository.url + "/metadata", "refresh", **time)

    def download(self, *names: str) -> int:
        """Download targets by name."""
        wanted = [word for name in names for word in ("--target-name", name)]
        places = ["--target-base-url", self.repository.url + "/targets"]
        places += ["--target-dir", str(self.targets)]
        url = self.repository.url + "/metadata"
        return self.run("--metadata-url", url, *wanted, *places, "download")

    def kept(self) -> list[str]:
        """Return the names of verified metadata."""
        return sorted(path.name for path in self.metadata.glob("*.json"))

    def version(self, role: str) -> int:
        """Return the verified version of a role."""
        return Metadata.from_file(str(self.metadata / f"{role}.json")).signed.version

    def bodies(self) -> list[bytes]:
        """Return what was downloaded."""
        return [path.read_bytes() for path in self.targets.iterdir()]


@pytest.fixture
def repository():
    """A repository with a key for each role."""
    world = World()
    repository = Repository(world)
    yield repository
    repository.close()
    world.close()


@pytest.fixture
def client(repository, tmp_path):
    """A client that has pinned the repository's first root."""
    client = Client(tmp_path, repository)
    assert client.init() == 0
    return client


def test_init_asks_nobody_and_refresh_asks_in_the_order_of_tuf(repository, client):
    """Init only keeps the root; refresh asks for root, timestamp, snapshot, targets, once each."""
    assert repository.asked == []
    assert client.kept() == ["root.json"]
    assert client.refresh() == 0
    names = [path.removeprefix("/metadata/") for path in repository.asked]
    assert names == ["2.root.json", "timestamp.json", "2.snapshot.json", "1.targets.json"]
    assert client.kept() == TOP
    kept = (client.metadata / "timestamp.json").read_bytes()
    assert kept == repository.world.files["timestamp.json"]


def test_download_of_several_targets_and_none_twice(repository, client):
    """Delegations are followed, bytes are as signed, and a second time nothing is fetched."""
    paths = [repository.publish("1.0.0"), repository.publish("2.0.0")]
    assert client.download(*paths) == 0
    assert sorted(client.bodies()) == sorted(repository.targets.values())
    assert client.kept() == ["publisher%2Fdigits.json", *TOP]
    before = len(repository.asked)
    assert client.download(*paths) == 0
    assert repository.asked[before:] == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_a_rollback_is_refused_with_and_without_the_cache(repository, client):
    """An older signed state fails, and the floors refuse it even where the cache is lost."""
    old = dict(repository.world.files)
    repository.publish("1.0.0")
    assert client.refresh() == 0
    repository.world.files.clear()
    repository.world.files.update(old)
    assert client.refresh() == 1
    assert client.version("timestamp") == repository.world.timestamp.version
    for path in client.metadata.glob("*.json"):
        path.unlink()
    assert client.refresh() == 1


@pytest.mark.faketime
def test_expired_metadata_is_refused_by_the_clock(repository, client):
    """The clock of the process decides: the same state holds today and not after its last day."""
    assert client.refresh() == 0
    assert client.refresh(later=timedelta(days=31)) == 1
    assert client.refresh() == 0


def test_wrong_bytes_and_missing_files_are_refused(repository, client):
    """Neither changed bytes, nor a target nobody signed, nor one not served leaves a file."""
    path = repository.publish("1.0.0")
    name = next(iter(repository.targets))
    true = repository.targets[name]
    repository.targets[name] = bytes([true[0] ^ 1]) + true[1:]
    assert client.download(path) == 1
    assert client.download("models/digits/9.9.9/manifest.json") == 1
    del repository.targets[name]
    assert client.download(path) == 1
    assert client.bodies() == []
    repository.targets[name] = true
    assert client.download(path, "models/digits/9.9.9/manifest.json") == 1


def test_a_root_that_is_none_asks_nobody(repository, tmp_path):
    """A pinned root that does not verify fails before the first request."""
    client = Client(tmp_path, repository)
    client.root.write_bytes(b"{}")
    client.init()
    assert client.refresh() == 1
    assert repository.asked == []
