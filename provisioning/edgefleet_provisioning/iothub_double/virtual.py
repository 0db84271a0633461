"""Devices without a connection: thousands in one thread, under the hub's rules and limits."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from edgefleet_provisioning.iothub_double.events import Event
from edgefleet_provisioning.iothub_double.sessions import Answer, Message, Session
from edgefleet_provisioning.iothub_double.state import Hub

OnDesired = Callable[["VirtualDevice", dict[str, Any]], None]
OnMethod = Callable[["VirtualDevice", str, Any], tuple[int, Any]]


class Crowd:
    """Virtual devices of a hub. Their callbacks run in one thread, in the order of events.

    Args:
        hub: Where they are registered.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.failures: list[BaseException] = []
        """What callbacks have raised."""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="virtual-devices", daemon=True)
        self._thread.start()

    def join(
        self, device: str, on_desired: OnDesired, on_method: OnMethod | None = None,
        *, module: str = "",
    ) -> VirtualDevice:  # fmt: skip
        """Connect a registered device.

        Args:
            device: Its id.
            on_desired: Called with a patch of desired properties, with its `$version`.
            on_method: Called with a method's name and payload; returns status and payload.
            module: Its module, or "".

        Raises:
            HubError: 404, or 429 if too many connect at a time.
        """
        self.hub.registry.get(device, module)
        self.hub.throttles.spend("connections")
        return VirtualDevice(self, device, module, on_desired, on_method)

    def soon(self, act: Callable[[], None]) -> None:
        """Have something done in the crowd's thread."""
        self._queue.put(act)

    def settle(self) -> None:
        """Wait until everything that has come so far is done."""
        done = threading.Event()
        self.soon(done.set)
        done.wait()

    def close(self) -> None:
        """End the thread, after what has come so far."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (act := self._queue.get()) is not None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - the others go on; a test looks here
                self.failures.append(error)


class VirtualDevice:
    """One device: what it says spends the hub's tokens as a connected device's words do."""

    def __init__(
        self, crowd: Crowd, device: str, module: str, on_desired: OnDesired,
        on_method: OnMethod | None,
    ) -> None:  # fmt: skip
        self.device, self.module = device, module
        self._crowd, self._on_desired, self._on_method = crowd, on_desired, on_method
        self._session: Session = crowd.hub.sessions.attach(device, module, self)

    def twin(self) -> dict[str, Any]:
        """Return its twin.

        Raises:
            HubError: 429.
        """
        self._crowd.hub.throttles.spend("twin_reads")
        return self._crowd.hub.device_twin(self.device, self.module)

    def report(self, patch: Mapping[str, Any]) -> int:
        """Report; return the version.

        Raises:
            HubError: 400 or 429.
        """
        self._crowd.hub.throttles.spend("twin_updates")
        return self._crowd.hub.report(self.device, self.module, patch)

    def send(self, body: bytes, properties: Mapping[str, str] | None = None) -> Event | None:
        """Send a message.

        Raises:
            HubError: 413, or 429, where a real device would be made to wait.
        """
        self._crowd.hub.throttles.spend("d2c")
        return self._crowd.hub.send_event(self.device, self.module, body, properties)

    def leave(self) -> None:
        """Disconnect."""
        self._crowd.hub.sessions.detach(self._session)

    def desired(self, patch: dict[str, Any]) -> None:
        """See `Listener`."""
        self._crowd.soon(lambda: self._on_desired(self, patch))

    def method(self, rid: str, name: str, payload: bytes) -> bool:
        """See `Listener`."""
        called = self._on_method
        if called is None:
            return False

        def act() -> None:
            status, said = called(self, name, json.loads(payload or b"null"))
            answer = Answer(status, json.dumps(said).encode())
            self._crowd.hub.sessions.answer(self._session, rid, *answer)

        self._crowd.soon(act)
        return True

    def c2d(self, message: Message) -> None:
        """See `Listener`: taken and forgotten."""
        self._crowd.hub.sessions.acknowledge(self.device, message.number)

    def thrown_out(self, reason: str) -> None:
        """See `Listener`: nothing is left to close."""
