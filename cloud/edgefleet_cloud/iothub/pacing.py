"""A hub's limits for all threads of this process, on a clock that never goes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from edgefleet_cloud.iothub.limits import Bucket, Tier, TwinBudget, Usage
from edgefleet_shared.errors import UnavailableError

Kind = Literal["reads", "registry", "queries"]
BURST_S = 2.0
PATIENCE_S = 60.0
"""How long one operation waits for its turn."""


class Pacer:
    """Says when the hub may be asked for something. Safe from any thread.

    Args:
        limits: Of the hub's tier.
        clock: Seconds that never go back.
    """

    def __init__(self, limits: Tier, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ending = threading.Event()
        now = clock()
        self._twins = TwinBudget(limits.twin_updates, now)
        rates = {
            "reads": limits.twin_reads,
            "registry": limits.registry,
            "queries": limits.queries,
        }
        self._buckets = {
            kind: Bucket(rate, max(1.0, rate * BURST_S), now) for kind, rate in rates.items()
        }
        self._closed: dict[str, float] = {}

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._ending.set()

    def write(self, device: str) -> float:
        """Charge for a write to a twin and return 0, or return seconds until one may go."""
        with self._lock:
            now = self._clock()
            wait = self._twins.wait_s(now)
            if wait <= 0:
                self._twins.wrote(device, now)
            return max(0.0, wait)

    def unwrote(self, device: str) -> None:
        """Give back what was charged: it was not written."""
        with self._lock:
            self._twins.unwrote(device, self._clock())

    def reported(self, device: str) -> None:
        """Note that a device's reported properties have changed."""
        with self._lock:
            self._twins.reported(device, self._clock())

    def throttled(self, retry_after_s: float) -> None:
        """Note that a write was answered with 429."""
        with self._lock:
            self._twins.throttled(self._clock(), retry_after_s)

    def refused(self, kind: Kind, retry_after_s: float) -> None:
        """Note that an operation of another kind was answered with 429."""
        with self._lock:
            self._closed[kind] = self._clock() + retry_after_s

    def usage(self) -> Usage:
        """Return how the limit of twin updates is used."""
        with self._lock:
            return self._twins.usage(self._clock())

    def take(self, kind: Kind) -> None:
        """Wait until an operation may be asked for, and charge for it.

        Raises:
            UnavailableError: Not within a minute, or we stop (code `iothub_throttled`).
        """
        until = self._clock() + PATIENCE_S
        while not self._ending.is_set():
            with self._lock:
                now = self._clock()
                wait = max(self._buckets[kind].wait_s(now), self._closed.get(kind, now) - now)
                if wait <= 0:
                    self._buckets[kind].spend(now)
                    return
            if now + wait > until:
                break
            self._ending.wait(wait)
        raise UnavailableError(
            f"The hub's limit of {kind} leaves no room now.", code="iothub_throttled"
        )
