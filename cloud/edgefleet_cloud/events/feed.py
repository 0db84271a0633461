"""Tells every listener that the event log has grown; works across threads and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class EventFeed:
    """A bell: `ring` wakes all who listen, `close` sends them home for good.

    Args:
        keep_alive_s: After this long without news a stream says that it lives, and looks itself:
            another process may have written.
    """

    def __init__(self, keep_alive_s: float = 15.0) -> None:
        self.keep_alive_s = keep_alive_s
        self._lock = threading.Lock()
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether listening is over."""
        return self._closed

    def ring(self) -> None:
        """Wake all listeners; any thread may call it."""
        with self._lock:
            listeners = list(self._listeners)
        for loop, event in listeners:
            with contextlib.suppress(RuntimeError):  # its loop has just closed: nobody to wake
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End every stream; the server calls it before it waits for open connections."""
        self._closed = True
        self.ring()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """Yield an event of the running loop that `ring` sets; the listener clears it."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.add(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners.discard(listener)
