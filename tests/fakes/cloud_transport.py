"""A broker in memory, and the fleet manager's transport over it: same promises as MQTT's."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future

from edgefleet_cloud.ports import Handler
from edgefleet_cloud.transports.outgoing import Outgoing
from edgefleet_shared import topics

log = logging.getLogger(__name__)


class MemoryBroker:
    """Keeps what devices sent until the fleet manager has it, and the newest document a topic."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.up = True
        self.queue: deque[tuple[str, bytes]] = deque()
        self.retained: dict[str, bytes] = {}
        self.sent: list[tuple[str, bytes]] = []

    def device_sends(self, topic: str, payload: bytes) -> None:
        """Queue a message for the fleet manager, as a persistent session does."""
        parsed = topics.parse(topic)
        assert parsed, topic
        assert parsed.direction == "up", topic
        with self.lock:
            self.queue.append((topic, payload))
            self.lock.notify_all()

    def set_up(self, up: bool) -> None:
        """Take the broker down or bring it back; it keeps what it had."""
        with self.lock:
            self.up = up
            self.lock.notify_all()


class MemoryTransport:
    """`ports.Transport` over a `MemoryBroker`."""

    POISON_AFTER = 5

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._outgoing = Outgoing()
        self._stopping = False
        self._failed: dict[tuple[str, bytes], int] = {}
        self._thread: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        return self._thread is not None and self._broker.up

    @property
    def pending(self) -> int:
        return len(self._outgoing)

    def start(self, handler: Handler) -> None:
        self._thread = threading.Thread(target=self._run, args=(handler,), daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> Future[None]:
        future = self._outgoing.put(topic, payload, retain=retain)
        with self._broker.lock:
            self._broker.lock.notify_all()
        return future

    def stop(self) -> None:
        with self._broker.lock:
            self._stopping = True
            self._broker.lock.notify_all()
        if self._thread:
            self._thread.join(10)

    def _run(self, handler: Handler) -> None:
        while True:
            with self._broker.lock:
                self._broker.lock.wait_for(self._due)
                if self._stopping:
                    return
                self._deliver()
                message = self._broker.queue[0] if self._broker.queue else None
            if message and self._taken(handler, message):
                with self._broker.lock:
                    self._broker.queue.popleft()

    def _due(self) -> bool:
        work = len(self._outgoing) or self._broker.queue
        return self._stopping or bool(self._broker.up and work)

    def _deliver(self) -> None:
        while item := self._outgoing.take():
            self._broker.sent.append((item.topic, item.payload))
            if item.retain:
                self._broker.retained[item.topic] = item.payload
            self._outgoing.sent(1, item)
            self._outgoing.acknowledged(1)

    def _taken(self, handler: Handler, message: tuple[str, bytes]) -> bool:
        try:
            handler(*message)
        except Exception:
            log.exception("The handler of %s failed", message[0])
            self._failed[message] = self._failed.get(message, 0) + 1
            return self._failed[message] >= self.POISON_AFTER
        return True
