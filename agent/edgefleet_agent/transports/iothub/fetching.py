"""A document that a twin only points to is fetched over HTTPS, in a thread of its own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from edgefleet_shared.errors import EdgeFleetError

RETRY_MIN_S = 1.0
FRESH_S = 5.0
"""What was fetched within this time is not fetched again for the same digest."""


class Fetching:
    """One document at a time, the newest that was pointed to.

    Args:
        fetch: Returns the document, None if there is none; blocks.
        arrived: Told of the document, in the thread that fetched.
        retry_max_s: Longest wait between two tries.
    """

    def __init__(
        self,
        fetch: Callable[[], bytes | None],
        arrived: Callable[[bytes], None],
        retry_max_s: float,
    ) -> None:
        self._fetch, self._arrived, self._retry_max_s = fetch, arrived, retry_max_s
        self._lock = threading.Lock()
        self._wanted = ""
        self._turn = 0
        self._fetched, self._at = "", float("-inf")
        self._over = threading.Event()
        self._changed = threading.Event()

    def want(self, digest: str) -> None:
        """Fetch the document of this digest, unless that is under way or just done."""
        with self._lock:
            fresh = time.monotonic() - self._at < FRESH_S
            if self._wanted == digest or (fresh and self._fetched == digest):
                return
            self._wanted = digest
            turn = self._begin()
        threading.Thread(
            target=self._run, args=(turn, digest), name="iothub-fetch", daemon=True
        ).start()

    def forget(self) -> None:
        """What is under way is wanted no more: a newer document has come."""
        with self._lock:
            self._wanted = ""
            self._begin()

    def stop(self) -> None:
        """Fetch no more."""
        self._over.set()
        self.forget()

    def _begin(self) -> int:
        self._turn += 1
        self._changed.set()
        self._changed = threading.Event()
        return self._turn

    def _run(self, turn: int, digest: str) -> None:
        delay = RETRY_MIN_S
        while (changed := self._current(turn)) is not None:
            try:
                found = self._fetch()
            except EdgeFleetError:
                wait = random.uniform(delay / 2, delay)  # noqa: S311 - jitter, no secret
                changed.wait(wait)
                delay = min(2 * delay, self._retry_max_s)
                continue
            self._finish(turn, digest, found)
            return

    def _current(self, turn: int) -> threading.Event | None:
        """Return what is set when this turn is over; None if it is."""
        with self._lock:
            return None if turn != self._turn or self._over.is_set() else self._changed

    def _finish(self, turn: int, digest: str, found: bytes | None) -> None:
        with self._lock:
            if turn != self._turn:
                return
            self._wanted = ""
            self._fetched, self._at = digest, time.monotonic()
        if found is not None:
            self._arrived(found)
