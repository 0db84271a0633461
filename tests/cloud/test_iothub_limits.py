"""A hub's limits: what a tier takes, and how writes and reports share it."""

from __future__ import annotations

import heapq
import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_cloud.iothub.limits import SHARE, SOON_S, Bucket, TwinBudget, tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_shared.errors import InvalidInputError, UnavailableError


@pytest.mark.parametrize(
    ("name", "units", "updates", "reads", "registry"),
    [
        ("S1", 1, 50, 100, 100 / 60),
        ("S1", 20, 50, 100, 2000 / 60),
        ("S2", 4, 50, 100, 400 / 60),
        ("S2", 20, 100, 200, 2000 / 60),
        ("S3", 2, 500, 1000, 10_000 / 60),
        ("F1", 1, 50, 100, 100 / 60),
    ],
)
def test_what_a_tier_takes(name, units, updates, reads, registry):
    """The table of Azure's documentation, with its least values and its units."""
    found = tier(name, units)
    assert (found.twin_updates, found.twin_reads) == (updates, reads)
    assert found.registry == pytest.approx(registry)


def test_a_basic_tier_has_no_twins():
    """It cannot carry a fleet, and the message says so."""
    with pytest.raises(InvalidInputError, match="no device twins"):
        tier("B2", 1)


@given(
    rate=st.floats(0.5, 500),
    burst=st.floats(1, 100),
    costs=st.lists(st.floats(0.1, 50), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate_and_burst(rate, burst, costs):
    """Whoever waits as it is told spends no more than was earned, but for the last cost."""
    bucket, now, spent = Bucket(rate, burst, 0.0), 0.0, 0.0
    for cost in costs:
        wait = bucket.wait_s(now, cost)
        assert 0 <= wait < math.inf
        now += wait
        assert bucket.wait_s(now, cost) == pytest.approx(0, abs=1e-6)
        bucket.spend(now, cost)
        spent += cost
        assert spent <= burst + rate * now + cost + 1e-6


def test_a_bucket_in_debt_is_waited_for():
    """What others have taken must be earned first."""
    bucket = Bucket(10, 10, 0.0)
    bucket.spend(0.0, 30)
    assert bucket.tokens == -20
    assert bucket.wait_s(0.0) == pytest.approx(2.1)
    bucket.give(0.0, 100)
    assert bucket.wait_s(0.0) == 0


class Hub:
    """A hub that counts twin updates in windows of a second, and devices that report."""

    def __init__(self, limit):
        self.limit, self.taken, self.refused, self._recent = limit, [], 0, deque()

    def update(self, now):
        """Take an update, or return the seconds of a 429."""
        while self._recent and self._recent[0] <= now - 1.0:
            self._recent.popleft()
        if len(self._recent) >= self.limit:
            self.refused += 1
            return 1.0
        self._recent.append(now)
        self.taken.append(now)
        return 0.0


def roll_out(devices, brings, limit=50, chatter=0.0, delay=12.0):
    """Write to every device once; each reports `brings` times, others `chatter` a second."""
    hub, budget, now = Hub(limit), TwinBudget(limit, 0.0), 0.0
    events = [(n / chatter, -1 - n) for n in range(int(chatter * 600))] if chatter else []
    heapq.heapify(events)
    left, end = list(range(devices)), 0.0
    while left or any(device >= 0 for _, device in events):
        wait = budget.wait_s(now) if left else math.inf
        due = events[0][0] if events else math.inf
        now = max(now, min(now + wait, due))
        if due <= now:
            _, device = heapq.heappop(events)
            if again := hub.update(now):
                heapq.heappush(events, (now + again, device))
            else:
                budget.reported(f"d{device}", now)
            continue
        device = left.pop()
        budget.wrote(f"d{device}", now)
        if again := hub.update(now):
            budget.throttled(now, again)
            budget.unwrote(f"d{device}", now)
            left.append(device)
            continue
        for n in range(brings):
            heapq.heappush(events, (now + delay * (n + 1) / brings, device))
        end = now
    return hub, budget, end


@pytest.mark.parametrize(("brings", "chatter"), [(4, 0.0), (2, 5.0), (6, 10.0), (0, 0.0)])
def test_a_rollout_uses_the_limit_and_is_hardly_ever_refused(brings, chatter):
    """Whatever a write brings, at most 1 % of updates get 429 and the limit is used."""
    hub, _, end = roll_out(2000, brings, chatter=chatter)
    calls = len(hub.taken) + hub.refused
    assert hub.refused <= 0.01 * calls
    begin = max(end / 3, SOON_S + 20)  # what a write brings has been learnt by then
    steady = [at for at in hub.taken if begin < at <= end]
    assert len(steady) / (end - begin) >= 0.8 * hub.limit


def test_what_a_write_brings_is_learnt():
    """The charge ahead follows what devices really do."""
    _, budget, end = roll_out(3000, 1)
    assert budget.usage(end).reports_per_write < 2


def test_a_429_halves_the_rate_which_comes_back():
    """Nothing goes for as long as the hub says, then half as much, later all of it again."""
    budget = TwinBudget(50, 0.0)
    budget.throttled(0.0, 7)
    assert budget.wait_s(0.0) == 7
    budget.throttled(0.5, 1)  # one storm halves once
    assert budget.usage(1.0).share == pytest.approx(SHARE / 2)
    assert budget.usage(1.0).throttled == 2
    assert budget.usage(61.0).share > SHARE * 0.7
    assert budget.usage(300.0).share == pytest.approx(SHARE)


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.sampled_from("wrtu"), st.floats(0, 5)), max_size=80))
def test_a_budget_always_lets_somebody_go_again(steps):
    """Whatever has happened, a write may go within minutes: no state is a dead end."""
    budget, now = TwinBudget(50, 0.0), 0.0
    for what, pause in steps:
        now += pause
        if what == "w":
            budget.wrote("a", now)
        elif what == "r":
            budget.reported("b", now)
        elif what == "u":
            budget.unwrote("a", now)
        else:
            budget.throttled(now, 5)
    for _ in range(1000):
        wait = budget.wait_s(now)
        if wait <= 0:
            break
        now += wait
    assert budget.wait_s(now) <= 0
    assert now <= sum(pause for _, pause in steps) + 5 + 80 * 11 / (50 * 0.02 * 0.05) + 60


def test_operations_wait_for_their_turn():
    """A pacer gives a burst, then makes callers wait, but not for ever."""
    now = [0.0]
    pacer = Pacer(tier("S1", 1), lambda: now[0])
    pacer.take("registry")
    pacer.take("registry")
    pacer.refused("registry", 100)
    with pytest.raises(UnavailableError, match="registry"):
        pacer.take("registry")
    now[0] = 101
    pacer.take("registry")


def test_a_pacer_that_stops_lets_nobody_wait():
    """Whoever waits at the end is told that it is not now."""
    pacer = Pacer(tier("S1", 1), lambda: 0.0)
    pacer.stop()
    with pytest.raises(UnavailableError):
        pacer.take("reads")
