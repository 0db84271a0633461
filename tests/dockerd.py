"""A real dockerd of the test's own, a registry to pull from, and images made from scratch."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker

SOURCE = Path(__file__).with_name("oip_server.c")
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Dockerd:
    """One dockerd in a folder of its own, without bridge and iptables.

    Raises:
        AssertionError: It does not start; its log is the message.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="efd", dir="/tmp"))
        self.socket = self.folder / "docker.sock"
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers; overlay2 where it can, else vfs."""
        log = self.folder / "log"
        for driver in ("overlay2", "vfs"):
            with log.open("ab") as file:
                self.process = subprocess.Popen(
                    [
                        "dockerd", "--host", f"unix://{self.socket}",
                        "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
                        "--pidfile", self.folder / "pid", "--storage-driver", driver,
                        "--iptables=false", "--ip6tables=false", "--bridge", "none",
                    ],
                    stdout=file, stderr=file, env={**os.environ, "PATH": _PATH},
                )  # fmt: skip
            if self._answers():
                return
            self.kill()
        raise AssertionError(f"dockerd does not start here: {log.read_text()[-3000:]}")

    def _answers(self) -> bool:
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
                sock.settimeout(5)
                sock.connect(str(self.socket))
                sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                if b"200 OK" in sock.recv(100):
                    return True
            time.sleep(0.1)
        return False

    def client(self, timeout_s: int = 30) -> docker.DockerClient:
        """Return a client of the SDK."""
        return docker.DockerClient(base_url=f"unix://{self.socket}", timeout=timeout_s)

    def closing(self) -> contextlib.closing[docker.DockerClient]:
        """Return a client that `with` closes."""
        return contextlib.closing(self.client())

    def stop(self) -> None:
        """Stop it; its containers end with it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Remove every container, stop, and leave nothing behind."""
        with contextlib.suppress(Exception), contextlib.closing(self.client()) as client:
            for one in client.containers.list(all=True):
                one.remove(force=True, v=True)
            for network in client.networks.list():
                with contextlib.suppress(Exception):
                    network.remove()
        self.stop()
        for mount in sorted(_mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]


def server_program(folder: Path) -> bytes:
    """Compile the server that the images hold."""
    target = folder / "oip_server"
    command = ["cc", "-O2", "-static", "-o", str(target), str(SOURCE), "-lpthread"]
    subprocess.run(command, check=True)
    return target.read_bytes()


class Image:
    """An image FROM scratch with one program: config, layer and manifest, by digest.

    Attributes:
        digest: Of the manifest, by which a registry knows it.
        id: Of the config, by which it is known once it was loaded by hand.
    """

    def __init__(self, program: bytes, name: str = "models/linear", **environ: object) -> None:
        self.name = name
        tar = _tar({"server": program}, 0o755)
        layer = gzip.compress(tar, mtime=0)
        config = json.dumps(
            {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
                "os": "linux",
                "config": {
                    "Entrypoint": ["/server"],
                    "Env": [f"{key}={value}" for key, value in environ.items()],
                },
                "rootfs": {"type": "layers", "diff_ids": [_digest(tar)]},
                "history": [{"created": "2026-01-01T00:00:00Z"}],
            }
        ).encode()
        self.id = _digest(config)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "size": len(config), "digest": self.id},
                "layers": [{"mediaType": LAYER, "size": len(layer), "digest": _digest(layer)}],
            }
        ).encode()
        self.digest = _digest(manifest)
        self.blobs = {self.digest: manifest, self.id: config, _digest(layer): layer}
        self._saved = {
            f"{self.id[7:]}.json": config,
            "layer.tar": tar,
            "manifest.json": json.dumps(
                [{"Config": f"{self.id[7:]}.json", "RepoTags": None, "Layers": ["layer.tar"]}]
            ).encode(),
        }

    def saved(self) -> bytes:
        """Return what `docker load` takes."""
        return _tar(self._saved, 0o644)


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), mode
            tar.addfile(info, io.BytesIO(body))
    return data.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """A registry on loopback that serves images by digest; dockerd trusts loopback without TLS.

    `authorization`, if set, is the header that is asked for.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.authorization = ""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                registry.serve(self)

            def do_HEAD(self):
                registry.serve(self)

            def log_message(self, *_):
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, image: Image) -> str:
        """Serve an image; return how a package names it."""
        self.blobs |= image.blobs
        return f"{self.host}/{image.name}@{image.digest}"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.asked.append(request.path)
        if self.authorization and request.headers.get("Authorization") != self.authorization:
            self._say(request, 401, b"{}", "application/json")
        elif request.path == "/v2/":
            self._say(request, 200, b"{}", "application/json")
        elif (data := self.blobs.get(request.path.rpartition("/")[2])) is None:
            self._say(request, 404, b"{}", "application/json")
        else:
            kind = MANIFEST if "/manifests/" in request.path else "application/octet-stream"
            self._say(request, 200, data, kind)

    def _say(self, request, status: int, data: bytes, kind: str) -> None:
        request.send_response(status)
        if status == 401:
            request.send_header("WWW-Authenticate", 'Basic realm="test"')
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
