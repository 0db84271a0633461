"""A transport through a folder, for an agentd that is a process of its own and is killed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from edgefleet_agent import durable


class FolderTransport:
    """`ports.Transport`: reads `desired`, writes `reported` and `batches/<stream>-<n>`.

    Args:
        folder: Where both sides meet; whoever writes, writes whole files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._seen = b""
        self._events: Any = None
        (folder / "batches").mkdir(exist_ok=True)

    def start(self, events: Any) -> None:
        """Begin to look into the folder."""
        self._events = events
        events.on_connected()
        threading.Thread(target=self._watch, daemon=True).start()

    def request_desired(self, have: int) -> None:
        """The folder is looked into anyway."""

    def publish_reported(self, sealed: bytes, done: Any) -> None:
        """Write the reported document."""
        durable.atomic_write(self._folder / "reported", sealed)
        done(True)

    def publish_batch(self, stream: str, sealed: bytes, done: Any) -> None:
        """Write a batch beside those before it, then say that it is held."""
        number = len(list((self._folder / "batches").iterdir()))
        durable.atomic_write(self._folder / "batches" / f"{number:06}-{stream}", sealed)
        done(True)

    def renewed(self) -> None:
        """A folder asks for no certificate."""

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            payload = durable.read_bytes(self._folder / "desired") or b""
            if payload != self._seen:
                self._seen = payload
                self._events.on_desired(payload)
