"""What a hub takes of each kind of operation: token buckets by its tier, and how many were refused.

The numbers are Microsoft's "IoT Hub quotas and throttling" as of 2025. Azure lets a burst pass for
a while before it refuses ("traffic shaping") and does not say how long; here a bucket holds
what the table grants in its own period, a second or a minute, and not more: stricter than Azure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from edgefleet_provisioning.iothub_double.clock import Clock
from edgefleet_provisioning.iothub_double.refusals import HubError, bad

METHOD_METER = 4096
"""Bytes: a method's payload counts in steps of these."""
_KIB = 1024


class Limit(NamedTuple):
    """So many operations (bytes, of methods) in so many seconds."""

    amount: float
    period_s: float


Row = dict[str, Callable[[int], Limit]]


def _tier(
    registry: int, flow: Callable[[int], float], methods: int, queries: int,
    reads: Callable[[int], float], updates: Callable[[int], float],
) -> Row:  # fmt: skip
    return {
        "registry": lambda units: Limit(registry * units, 60),
        "connections": lambda units: Limit(flow(units), 1),
        "d2c": lambda units: Limit(flow(units), 1),
        "c2d": lambda units: Limit(registry * units, 60),
        "methods": lambda units: Limit(methods * units, 1),
        "queries": lambda units: Limit(queries * units, 60),
        "twin_reads": lambda units: Limit(reads(units), 1),
        "twin_updates": lambda units: Limit(updates(units), 1),
        "configurations": lambda units: Limit(20 * units, 60),
    }


_SMALL = _tier(
    100, lambda n: max(100, 12 * n), 160 * _KIB, 20, lambda _: 100, lambda _: 50
)  # fmt: skip
TIERS: dict[str, Row] = {
    "F1": _SMALL,
    "S1": _SMALL,
    "S2": _tier(
        100, lambda n: 120 * n, 480 * _KIB, 20, lambda n: max(100, 10 * n), lambda n: max(50, 5 * n)
    ),
    "S3": _tier(
        5000, lambda n: 6000 * n, 24 * _KIB * _KIB, 1000, lambda n: 500 * n, lambda n: 250 * n
    ),
}
OPERATIONS = tuple(_SMALL)
DAILY = {"F1": 8_000, "S1": 400_000, "S2": 6_000_000, "S3": 300_000_000}
"""Messages a day and unit."""


class _Bucket:
    """Tokens that come back at an even rate."""

    def __init__(self, limit: Limit, now: float) -> None:
        self.limit = limit
        self.tokens = limit.amount
        self.at = now

    def take(self, cost: float, now: float) -> float:
        """Take tokens; return 0, or the seconds until there will be enough."""
        rate = self.limit.amount / self.limit.period_s
        grown = self.tokens + max(0.0, now - self.at) * rate
        self.tokens, self.at = min(self.limit.amount, grown), now
        if self.tokens >= cost:
            self.tokens -= cost
            return 0.0
        return (cost - self.tokens) / rate


class Throttles:
    """The buckets of one hub, and what has passed them and what has not.

    Args:
        tier: One of `TIERS`.
        units: How many of it.
        clock: The double's time; moving it fills the buckets.
    """

    def __init__(self, tier: str, units: int, clock: Clock) -> None:
        if tier not in TIERS:
            raise bad(f"There is no tier {tier}; there are {', '.join(TIERS)}.")
        self.tier, self.units = tier, units
        self.daily: int | None = None
        """Messages a day that are taken at most; None: not counted."""
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets = {
            name: _Bucket(limit(units), clock.now()) for name, limit in TIERS[tier].items()
        }
        self._counts = {name: {"calls": 0, "throttled": 0} for name in OPERATIONS}
        self._day, self._today = 0, 0

    def limit(self, operation: str) -> Limit:
        """Return what is granted of an operation."""
        return self._buckets[operation].limit

    def set(self, operation: str, amount: float, period_s: float = 1.0) -> None:
        """Grant something else than the tier does, from a full bucket."""
        with self._lock:
            self._buckets[operation] = _Bucket(Limit(amount, period_s), self._clock.now())

    def spend(self, operation: str, cost: float = 1.0) -> None:
        """Count an operation and let it pass.

        Args:
            operation: One of `OPERATIONS`.
            cost: 1, or bytes for methods.

        Raises:
            HubError: 429 where the rate is exceeded, 403 where the day's quota is.
        """
        wait = self.ask(operation, cost)
        if wait:
            raise HubError(
                429, "ThrottlingException", f"Too many {operation} operations.", max(1.0, wait)
            )
        if operation == "d2c":
            self.count_message()

    def ask(self, operation: str, cost: float = 1.0) -> float:
        """Count an operation; return 0 if it may pass, else the seconds until it might."""
        with self._lock:
            wait = self._buckets[operation].take(cost, self._clock.now())
            self._counts[operation]["throttled" if wait else "calls"] += 1
            return wait

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each operation how many `calls` passed and how many were `throttled`."""
        with self._lock:
            return {name: dict(found) for name, found in self._counts.items()}

    def count_message(self) -> None:
        """Count a message of the day.

        Raises:
            HubError: 403, the quota is used up.
        """
        with self._lock:
            day = int(self._clock.now() // 86400)
            if day != self._day:
                self._day, self._today = day, 0
            self._today += 1
            over = self.daily is not None and self._today > self.daily
        if over:
            raise HubError(403, "IoTHubQuotaExceeded", "The day's quota of messages is used up.")


def method_cost(payload: bytes) -> int:
    """Return the bytes that a method call spends."""
    return max(1, -(-len(payload) // METHOD_METER)) * METHOD_METER
