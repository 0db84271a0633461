"""A transport in memory: what the agent publishes is there to read, what it is sent is at once."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from typing import Any


class MemoryTransport:
    """`ports.Transport` without a network.

    Attributes:
        desired: The retained desired document, handed over whenever it is asked for.
        holding: Whether the other side takes what is published.
        asked: The `have` of every request.
        reported: Payloads of the reported documents, opened but not verified.
        batches: Payloads of the batches, by stream.
    """

    def __init__(self) -> None:
        self.desired: bytes | None = None
        self.holding = True
        self.asked: list[int] = []
        self.reported: list[dict[str, Any]] = []
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.sealed: list[bytes] = []
        self.presence: bool | None = None
        self._events: Any = None
        self._lock = threading.Lock()

    def start(self, events: Any) -> None:
        """Connect at once."""
        self._events = events
        self.connect()

    def connect(self) -> None:
        """Stand, as after a reconnect."""
        self.presence = True
        self._events.on_connected()

    def disconnect(self) -> None:
        """Break."""
        self.presence = False
        self._events.on_disconnected("pulled")

    def send(self, payload: bytes) -> None:
        """Retain a desired document and hand it over."""
        self.desired = payload
        if self.presence and self._events is not None:
            self._events.on_desired(payload)

    def request_desired(self, have: int) -> None:
        """Hand the retained document over again."""
        self.asked.append(have)
        if self.desired is not None:
            self._events.on_desired(self.desired)

    def publish_reported(self, sealed: bytes, done: Any) -> None:
        """Take a reported document."""
        if self.presence and self.holding:
            with self._lock:
                self.sealed.append(sealed)
                self.reported.append(opened(sealed))
        done(bool(self.presence and self.holding))

    def publish_batch(self, stream: str, sealed: bytes, done: Any) -> None:
        """Take a batch."""
        if self.presence and self.holding:
            with self._lock:
                self.sealed.append(sealed)
                self.batches.setdefault(stream, []).append(opened(sealed))
        done(bool(self.presence and self.holding))

    def renewed(self) -> None:
        """Stand anew."""
        self.disconnect()
        self.connect()

    def stop(self) -> None:
        """Say goodbye."""
        self.presence = False

    def items(self, stream: str) -> list[dict[str, Any]]:
        """Return every item of a stream that has come, in order."""
        with self._lock:
            return [item for batch in self.batches.get(stream, []) for item in batch["items"]]

    def slot(self, name: str) -> dict[str, Any]:
        """Return the newest report of a slot, or {}."""
        with self._lock:
            return self.reported[-1]["slots"].get(name, {}) if self.reported else {}


def opened(sealed: bytes) -> dict[str, Any]:
    """Return the payload of an envelope, unverified."""
    return json.loads(b64decode(json.loads(sealed)["payload"]))
