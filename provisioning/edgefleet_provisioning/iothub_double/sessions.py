"""Who is connected to a hub, what waits for them, and which methods they have not yet answered."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from edgefleet_provisioning.iothub_double.refusals import HubError, bad, not_online

C2D_QUEUE = 50
C2D_BYTES = 64 * 1024


class Message(NamedTuple):
    """A cloud-to-device message: a number, its body, and its properties, system's by `$.` names."""

    number: int
    body: bytes
    properties: dict[str, str]


class Answer(NamedTuple):
    """A device's answer to a method: its status and its payload, JSON."""

    status: int
    payload: bytes


class Listener(Protocol):
    """A connected device. Called under the hub's lock, in order: each call returns at once."""

    def desired(self, patch: dict[str, Any]) -> None:
        """Hear of changed desired properties, with their `$version`."""

    def method(self, rid: str, name: str, payload: bytes) -> bool:
        """Hear of a method to be run; False if nobody listens for methods."""

    def c2d(self, message: Message) -> None:
        """Hear of a cloud-to-device message."""

    def thrown_out(self, reason: str) -> None:
        """Hear that the connection ends now. `detach` need not be called."""


@dataclass(eq=False)
class Session:
    """One connection of one identity; `auth` is how it has shown who it is."""

    device: str
    module: str
    listener: Listener
    auth: Mapping[str, Any]
    waiting: dict[str, Future[Answer]] = field(default_factory=dict)


class Sessions:
    """All connections to one hub. Thread-safe.

    Args:
        lock: The hub's lock.
        changed: Told `(device, module, connected)` under the lock.
        queued: Told `(device, how many messages wait)` under the lock.
    """

    def __init__(
        self, lock: threading.RLock, changed: Callable[[str, str, bool], None],
        queued: Callable[[str, int], None],
    ) -> None:  # fmt: skip
        self._lock, self._changed, self._queued = lock, changed, queued
        self._live: dict[tuple[str, str], Session] = {}
        self._queues: dict[str, deque[Message]] = {}
        self._filters: dict[tuple[str, str], set[str]] = {}
        self._numbers = itertools.count(1)

    def attach(
        self, device: str, module: str, listener: Listener, auth: Mapping[str, Any] | None = None
    ) -> Session:
        """Note a connection; an older one of the same identity is thrown out."""
        said = auth or {"scope": "device", "type": "sas", "issuer": "iothub"}
        session = Session(device, module, listener, said)
        with self._lock:
            self.throw_out(device, module, "another connection of the same identity")
            self._live[device, module] = session
            self._changed(device, module, True)
        return session

    def detach(self, session: Session) -> None:
        """Note that a connection has ended; nothing happens if it has been thrown out."""
        with self._lock:
            if self._live.get((session.device, session.module)) is session:
                self._end(session)

    def throw_out(self, device: str, module: str, reason: str) -> bool:
        """End the connection of an identity; False if it has none."""
        with self._lock:
            session = self._live.get((device, module))
            if session is not None:
                self._end(session)
                session.listener.thrown_out(reason)
            return session is not None

    def throw_all_out(self, reason: str) -> int:
        """End every connection; return how many there were."""
        with self._lock:
            names = list(self._live)
            return sum(self.throw_out(*name, reason) for name in names)

    def find(self, device: str, module: str = "") -> Session | None:
        """Return the connection of an identity, if it has one."""
        return self._live.get((device, module))

    def connected(self) -> list[tuple[str, str]]:
        """Return the identities that are connected."""
        with self._lock:
            return sorted(self._live)

    def filters(self, device: str, module: str, *, clean: bool) -> set[str]:
        """Return the topic filters of an identity's session, which outlives its connections.

        Args:
            device: Its id.
            module: Its module, or "".
            clean: Whether to begin anew.
        """
        with self._lock:
            if clean:
                self._filters.pop((device, module), None)
                if not module:
                    self._queues.pop(device, None)
                    self._queued(device, 0)
            return self._filters.setdefault((device, module), set())

    def desired(self, device: str, module: str, patch: dict[str, Any]) -> None:
        """Tell a connected device of changed desired properties."""
        with self._lock:
            session = self._live.get((device, module))
            if session is not None:
                session.listener.desired(patch)

    def send(self, device: str, body: bytes, properties: Mapping[str, str]) -> Message:
        """Queue a cloud-to-device message and tell a connected device.

        Raises:
            HubError: 413 for a message that is too large, 403 if 50 wait already.
        """
        if len(body) > C2D_BYTES:
            raise HubError(413, "MessageTooLarge", f"More than {C2D_BYTES} bytes.")
        with self._lock:
            queue = self._queues.setdefault(device, deque())
            if len(queue) >= C2D_QUEUE:
                raise HubError(
                    403, "DeviceMaximumQueueDepthExceeded", f"{C2D_QUEUE} messages wait already."
                )
            message = Message(next(self._numbers), body, dict(properties))
            queue.append(message)
            self._queued(device, len(queue))
            session = self._live.get((device, ""))
            if session is not None:
                session.listener.c2d(message)
            return message

    def pending(self, device: str) -> list[Message]:
        """Return the messages that a device has not yet acknowledged, the oldest first."""
        with self._lock:
            return list(self._queues.get(device, ()))

    def acknowledge(self, device: str, number: int) -> None:
        """Forget a message that the device has."""
        with self._lock:
            queue = self._queues.get(device, deque())
            self._queues[device] = deque(m for m in queue if m.number != number)
            self._queued(device, len(self._queues[device]))

    def call(self, device: str, module: str, name: str, payload: bytes) -> Future[Answer]:
        """Run a method on a connected device.

        Returns:
            Its answer to come, or a HubError 504 if its connection ends. Who waits says how long.

        Raises:
            HubError: 404, it is not connected or does not listen for methods.
        """
        answer: Future[Answer] = Future()
        rid = uuid.uuid4().hex
        with self._lock:
            session = self._live.get((device, module))
            if session is None:
                raise not_online(device)
            session.waiting[rid] = answer
            if not session.listener.method(rid, name, payload):
                del session.waiting[rid]
                raise not_online(device)
        return answer

    def answer(self, session: Session, rid: str, status: int, payload: bytes) -> None:
        """Pass a device's answer on.

        Raises:
            HubError: 400, nobody has asked under this number.
        """
        with self._lock:
            waiting = session.waiting.pop(rid, None)
        if waiting is None:
            raise bad(f"No method waits for an answer to {rid}.")
        if waiting.set_running_or_notify_cancel():
            waiting.set_result(Answer(status, payload))

    def _end(self, session: Session) -> None:
        del self._live[session.device, session.module]
        for waiting in session.waiting.values():
            if waiting.set_running_or_notify_cancel():
                waiting.set_exception(HubError(504, "GatewayTimeout", "The device has gone."))
        session.waiting.clear()
        self._changed(session.device, session.module, False)
