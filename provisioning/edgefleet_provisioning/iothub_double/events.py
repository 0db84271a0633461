"""The hub's log of events, which its Event Hubs-compatible endpoint serves."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

KEPT = 200_000
"""Events that a partition keeps; older ones go, as Azure's go after their retention."""


class Event(NamedTuple):
    """One event.

    Attributes:
        partition: Number of its partition.
        sequence: Its number there, from 0, without a gap.
        offset: Where it lies there; grows by its size. Azure says it as text.
        enqueued: When it came, in seconds since 1970.
        body: As it was sent.
        properties: Application properties.
        system: AMQP properties: content_type, content_encoding, message_id, correlation_id,
            user_id.
        annotations: `iothub-*`. `iothub-enqueuedtime` is in milliseconds.
    """

    partition: int
    sequence: int
    offset: str
    enqueued: float
    body: bytes
    properties: dict[str, str]
    system: dict[str, str]
    annotations: dict[str, Any]


class EventLog:
    """All partitions of one hub. Thread-safe.

    Args:
        partitions: How many.
        lock: Held while a listener is called.
    """

    def __init__(self, partitions: int, lock: threading.RLock) -> None:
        self.partitions = partitions
        self._lock = lock
        self._kept: list[deque[Event]] = [deque(maxlen=KEPT) for _ in range(partitions)]
        self._next = [(0, 0)] * partitions
        self._listeners: list[Callable[[int], None]] = []

    def partition_of(self, device: str) -> int:
        """Return where a device's events lie; all of one device lie in one partition."""
        return zlib.crc32(device.encode()) % self.partitions

    def append(
        self, device: str, enqueued: float, body: bytes, properties: dict[str, str],
        system: dict[str, str], annotations: dict[str, Any],
    ) -> Event:  # fmt: skip
        """Add an event of a device and tell the listeners."""
        with self._lock:
            partition = self.partition_of(device)
            sequence, offset = self._next[partition]
            event = Event(
                partition, sequence, str(offset), enqueued, body, properties, system, annotations
            )
            self._kept[partition].append(event)
            self._next[partition] = (sequence + 1, offset + len(body) + 400)
            for listener in list(self._listeners):
                listener(partition)
            return event

    def read(self, partition: int, after: int = -1, limit: int = 1000) -> list[Event]:
        """Return events behind a sequence number, the oldest first."""
        with self._lock:
            kept = self._kept[partition]
            if not kept:
                return []
            start = max(0, after + 1 - kept[0].sequence)
            return list(islice(kept, start, start + limit))

    def first(self, partition: int) -> Event | None:
        """Return the oldest event that is kept."""
        with self._lock:
            kept = self._kept[partition]
            return kept[0] if kept else None

    def last(self, partition: int) -> Event | None:
        """Return the youngest event."""
        with self._lock:
            kept = self._kept[partition]
            return kept[-1] if kept else None

    def all(self) -> list[Event]:
        """Return every event that is kept, by partition."""
        with self._lock:
            return [event for kept in self._kept for event in kept]

    def listen(self, listener: Callable[[int], None]) -> Callable[[], None]:
        """Have the number of each partition told that has grown; return what ends it.

        Args:
            listener: Called under the hub's lock: it returns at once and takes no other lock.
        """
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop
