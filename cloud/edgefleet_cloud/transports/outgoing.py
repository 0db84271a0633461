"""What the fleet manager has to send: nothing is dropped, and a retained topic's newest wins."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple


class Item(NamedTuple):
    """One message to publish, and who waits for its acknowledgement."""

    key: str
    topic: str
    payload: bytes
    retain: bool
    waiting: list[Future[None]]


class Outgoing:
    """A queue of messages, safe to use from any thread.

    A message is waiting, then in flight under a packet id, then acknowledged. Losing the
    connection puts what was in flight back to the front.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Item] = OrderedDict()
        self._in_flight: OrderedDict[int, Item] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        """Return how many messages wait for their acknowledgement."""
        with self._lock:
            return len(self._in_flight)

    def put(self, topic: str, payload: bytes, *, retain: bool) -> Future[None]:
        """Add a message; the future ends when the broker has acknowledged it.

        A retained message that still waits is replaced by a newer one on its topic, and its future
        ends with the newer one's.
        """
        future: Future[None] = Future()
        with self._lock:
            self._count += 1
            key = topic if retain else f"{topic}#{self._count}"
            old = self._waiting.pop(key, None)
            waiting = [*(old.waiting if old else []), future]
            self._waiting[key] = Item(key, topic, payload, retain, waiting)
        return future

    def take(self) -> Item | None:
        """Take the oldest waiting message, to be sent now; None if there is none."""
        with self._lock:
            return self._waiting.popitem(last=False)[1] if self._waiting else None

    def give_back(self, item: Item) -> None:
        """Return a message that could not be sent to the front of the queue."""
        with self._lock:
            self._put_front(item)

    def sent(self, packet: int, item: Item) -> None:
        """Note that a message is under way as packet `packet`."""
        with self._lock:
            self._in_flight[packet] = item

    def acknowledged(self, packet: int) -> None:
        """The broker has packet `packet`; whoever waits for it is told."""
        with self._lock:
            item = self._in_flight.pop(packet, None)
        for future in item.waiting if item else []:
            _end(future)

    def connection_lost(self) -> None:
        """Put everything in flight back to the front, in order."""
        with self._lock:
            for item in reversed(self._in_flight.values()):
                self._put_front(item)
            self._in_flight.clear()

    def _put_front(self, item: Item) -> None:
        newer = self._waiting.get(item.key)
        if newer:
            newer.waiting.extend(item.waiting)
            return
        self._waiting[item.key] = item
        self._waiting.move_to_end(item.key, last=False)


def _end(future: Future[None]) -> None:
    try:
        future.set_result(None)
    except InvalidStateError:
        return  # whoever waited has cancelled it
