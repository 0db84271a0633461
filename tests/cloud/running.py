"""A real fleet manager in this process: real files, real SQLite, real HTTP on a free port."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import httpx

from edgefleet_cloud import compose, config, server
from edgefleet_cloud.config import Config
from edgefleet_shared.identifiers import sha256_digest
from tests.fleet_folder import FleetFolder


class RunningCloud:
    """The API of a fleet folder, on a thread of its own.

    Args:
        folder: Whose fleet.
        background: Whether broker, transport and controller run too.
    """

    def __init__(self, folder: FleetFolder, *, background: bool = False) -> None:
        self.folder = folder
        self._background = background
        self._thread: threading.Thread | None = None
        self._others: list[httpx.Client] = []
        self.start()

    def start(self) -> None:
        """Start it; a stopped one may be started again over the same data."""
        settings = self.settings(self.folder.config)
        self._listener, self.config = server.bind(settings)
        self.program = compose.compose(self.config)
        background = self.program.background if self._background else []
        self._server = server.Server(
            self.program.app, background, self._listener, self.config, self.program.closing
        )
        self.facts: dict[str, Any] = {}
        ready, failed = threading.Event(), []

        def run() -> None:
            try:
                asyncio.run(self._server.run(lambda facts: (self.facts.update(facts), ready.set())))
            except BaseException as error:  # noqa: BLE001 - told to the test below
                failed.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(30)
        assert not failed, failed
        self.url = str(self.facts["api"])
        self.token = self.folder.token
        self.anyone = httpx.Client(base_url=self.url, timeout=30)
        self.client = httpx.Client(
            base_url=self.url, timeout=30, headers={"Authorization": f"Bearer {self.token}"}
        )

    def settings(self, path: Path) -> Config:
        """Return the configuration; the environment of the tests has no say."""
        return config.load(path, {})

    def stop(self) -> None:
        """Stop it, cleanly; again is fine."""
        if self._thread is None:
            return
        self.client.close()
        self.anyone.close()
        for client in self._others:
            client.close()
        self._server.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._thread = None
        self._listener.close()
        self.program.database.close()

    def bearing(self, token: str) -> httpx.Client:
        """Return a client that sends this token; closed with the server."""
        headers = {"Authorization": f"Bearer {token}"}
        self._others.append(httpx.Client(base_url=self.url, headers=headers, timeout=30))
        return self._others[-1]

    def upload(self, data: bytes) -> str:
        """Upload a blob in one piece; return its digest."""
        digest = sha256_digest(data)
        made = self.client.post("/v1/uploads", json={"digest": digest, "size": len(data)})
        assert made.status_code in {200, 201}, made.text
        if made.json()["state"] == "open":
            sent = self.client.patch(
                f"/v1/uploads/{made.json()['id']}", content=data, headers={"Upload-Offset": "0"}
            )
            assert sent.status_code == 200, sent.text
        return digest

    def publish(self, manifest, data: bytes, blobs: dict[str, bytes], **release) -> httpx.Response:
        """Upload a package and publish it, signed by the publisher; return the answer."""
        for content in (*blobs.values(), data):
            self.upload(content)
        metadata = self.folder.release(manifest, data, **release)
        return self.client.post(
            f"/v1/models/{manifest.name}/versions",
            json={
                "version": manifest.version,
                "manifest": sha256_digest(data),
                "metadata": base64.b64encode(metadata).decode(),
            },
        )
