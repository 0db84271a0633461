"""What a hub's tier takes a second, and how the fleet manager stays just under it. Pure.

Writes of ours and reports of devices share the tier's limit of twin updates. Each write brings
reports some seconds later; a write is charged for them ahead, or the start of a rollout would use
the limit twice. What a write brings is learnt.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edgefleet_shared.errors import InvalidInputError

SHARE = 0.95
"""Of the limit that is aimed for; the rest is for reports that come together by chance."""
LEAST_SHARE = 0.02
BURST_S = 1.0
EXPECT = (0.0, 8.0, 12.0)
"""Reports that a write brings: at least, at first, at most."""
SOON_S, FOLLOWS_S = 30.0, 120.0
"""A report this long after a write to its device counts as brought by it: soon, or late."""
BACKGROUND_S = 60.0
LEARN = 0.02
"""Weight of one device's count of reports in the mean."""
HALVE_S, RECOVER_S, RECOVER = 1.0, 10.0, 0.05


class Tier(NamedTuple):
    """Operations that a hub takes a second; `docs/iothub.md` says from where."""

    twin_updates: float
    twin_reads: float
    registry: float
    queries: float
    methods_bytes: float


def tier(name: str, units: int) -> Tier:
    """Return the limits of a tier with some units.

    Raises:
        InvalidInputError: There is no such tier, or it has no twins.
    """
    kilobyte = 1024
    if name in {"F1", "S1"}:
        return Tier(
            50.0, 100.0, 100 / 60 * units, 20 / 60 * units, 160 * kilobyte * units
        )  # fmt: skip
    if name == "S2":
        return Tier(
            max(50.0, 5.0 * units), max(100.0, 10.0 * units), 100 / 60 * units, 20 / 60 * units,
            480 * kilobyte * units,
        )  # fmt: skip
    if name == "S3":
        return Tier(
            250.0 * units, 500.0 * units, 5000 / 60 * units, 1000 / 60 * units,
            24 * kilobyte * kilobyte * units,
        )  # fmt: skip
    if name in {"B1", "B2", "B3"}:
        raise InvalidInputError(
            f"Tier {name} has no device twins.", code="iothub_tier", hint="Use a tier S1 to S3."
        )
    raise InvalidInputError(f"There is no tier {name!r}.", hint="Use F1, S1, S2 or S3.")


class Bucket:
    """So many tokens a second, up to a burst; it may be overdrawn, and is then waited for.

    Args:
        rate: Tokens a second.
        burst: The most it holds, and what it holds at first.
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    @property
    def tokens(self) -> float:
        """Return what it held when it was last looked at; below zero is debt."""
        return self._tokens

    def wait_s(self, now: float, cost: float = 1.0) -> float:
        """Return seconds until a cost may be spent; 0 = now.

        More than the burst is let go once the bucket is full, and leaves a debt.
        """
        self._fill(now)
        lacking = min(cost, self._burst) - self._tokens
        if lacking <= 0:
            return 0.0
        return lacking / self.rate if self.rate > 0 else math.inf

    def spend(self, now: float, cost: float = 1.0) -> None:
        """Take tokens, though there may not be so many."""
        self._fill(now)
        self._tokens -= cost

    def give(self, now: float, amount: float) -> None:
        """Give tokens back that were charged and not used."""
        self._fill(now)
        self._tokens = min(self._burst, self._tokens + amount)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._tokens = min(self._burst, self._tokens + passed * self.rate)
        self._at = max(self._at, now)


class Usage(NamedTuple):
    """How a hub's limit of twin updates is used.

    Attributes:
        limit: Updates a second that the tier takes.
        updates_per_minute: Writes of ours and reports of devices in the last minute.
        throttled: 429 answers since the start.
        share: Of the limit that is aimed for now.
        reports_per_write: What a write is taken to bring.
        background: Reports a second of devices that were not written to lately.
    """

    limit: float
    updates_per_minute: int
    throttled: int
    share: float
    reports_per_write: float
    background: float


@dataclass
class _Written:
    """A write: when, what it was charged, and the reports since."""

    at: float
    charged: float
    reports: int = 0


class TwinBudget:
    """When the next twin may be written to. Not safe from several threads: the caller locks.

    Args:
        limit: Twin updates a second that the tier takes.
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, limit: float, now: float) -> None:
        self._limit = limit
        self._share, self._recovered, self._halved = SHARE, now, -math.inf
        self._closed_until = -math.inf
        self._began = self._looked_at = now
        self._bucket = Bucket(limit * SHARE, max(1.0, limit * BURST_S), now)
        self._soon, self._late = EXPECT[1], 0.0
        self._fresh: OrderedDict[str, _Written] = OrderedDict()
        self._older: OrderedDict[str, _Written] = OrderedDict()
        self._background: deque[float] = deque()
        self._updates: deque[float] = deque()
        self._throttled = 0

    @property
    def _brings(self) -> float:
        return min(EXPECT[2], max(EXPECT[0], self._soon + self._late))

    def wait_s(self, now: float) -> float:
        """Return seconds until the next write may go; 0 = now."""
        self._look(now)
        if now < self._closed_until:
            return self._closed_until - now
        return self._bucket.wait_s(now, 1.0 + self._brings)

    def wrote(self, device: str, now: float) -> None:
        """A twin was written to: it is charged for with the reports that it will bring."""
        self._look(now)
        self._older.pop(device, None)  # what follows from now on, the newer write has brought
        charged = 1.0 + self._brings
        self._fresh.pop(device, None)
        self._fresh[device] = _Written(now, charged)
        self._updates.append(now)
        self._bucket.spend(now, charged)

    def unwrote(self, device: str, now: float) -> None:
        """What was charged for was not written: it is given back."""
        self._look(now)
        if found := self._fresh.pop(device, None):
            self._updates.pop()
            self._bucket.give(now, found.charged)

    def reported(self, device: str, now: float) -> None:
        """A device's reported properties have changed."""
        self._look(now)
        self._updates.append(now)
        if found := self._fresh.get(device) or self._older.get(device):
            found.reports += 1
        else:
            self._background.append(now)

    def throttled(self, now: float, retry_after_s: float) -> None:
        """The hub has said 429: nothing goes until it allows, and then half as much."""
        self._look(now)
        self._throttled += 1
        self._closed_until = max(self._closed_until, now + retry_after_s)
        if now - self._halved >= HALVE_S:
            self._share = max(LEAST_SHARE, self._share / 2)
            self._halved = self._recovered = now
        self._set_rate(now)

    def usage(self, now: float) -> Usage:
        """Return how the limit is used."""
        self._look(now)
        return Usage(
            self._limit, len(self._updates), self._throttled, self._share, self._brings,
            self._rate_of_background(),
        )  # fmt: skip

    def _look(self, now: float) -> None:
        """Let time pass: recover the share, learn from writes whose reports are all here."""
        self._looked_at = max(now, self._looked_at)
        steps = int((now - self._recovered) // RECOVER_S)
        if steps > 0:
            self._share = min(SHARE, self._share + steps * RECOVER * SHARE)
            self._recovered += steps * RECOVER_S
        self._learn(now)
        _drop(self._background, now - BACKGROUND_S)
        _drop(self._updates, now - BACKGROUND_S)
        self._set_rate(now)

    def _learn(self, now: float) -> None:
        for device, found in _older_than(self._fresh, now - SOON_S):
            self._soon += LEARN * (found.reports - self._soon)
            found.reports = 0
            self._older[device] = found
        for _, found in _older_than(self._older, now - FOLLOWS_S):
            self._late += LEARN * (found.reports - self._late)

    def _set_rate(self, now: float) -> None:
        self._bucket.wait_s(now)  # what was earned until now was earned at the old rate
        aimed = self._limit * self._share
        self._bucket.rate = max(aimed * 0.05, aimed - self._rate_of_background())

    def _rate_of_background(self) -> float:
        heard = min(BACKGROUND_S, max(BACKGROUND_S / 6, self._looked_at - self._began))
        return len(self._background) / heard


def _older_than(
    written: OrderedDict[str, _Written], before: float
) -> Iterator[tuple[str, _Written]]:
    """Take out and yield the oldest entries, as far as they were written before a time."""
    while written and next(iter(written.values())).at <= before:
        yield written.popitem(last=False)


def _drop(times: deque[float], before: float) -> None:
    while times and times[0] <= before:
        times.popleft()
