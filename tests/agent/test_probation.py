"""The verdict on a new version: what is bad is seen early, what is good is left in peace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.probation import Sample, judge
from edgefleet_shared.histogram import bucket
from edgefleet_shared.messages import Policy

POLICY = Policy()
MS = 1_000_000


def sample(requests=0, *, ms=1.0, **counts) -> Sample:
    """Return a sample whose answers all took `ms` milliseconds."""
    return Sample(requests, compute={bucket(int(ms * MS)): requests} if requests else {}, **counts)


BASE = sample(500)


@pytest.mark.parametrize(
    ("elapsed", "candidate", "kind", "trigger"),
    [
        (1, sample(), "wait", ""),
        (1, sample(1000), "wait", ""),
        (60, sample(1000), "pass", ""),
        (60, sample(), "inconclusive", ""),
        (60, sample(19), "inconclusive", ""),
        (1, sample(5, nonfinite=1), "fail", "nonfinite"),
        (1, sample(5, crashes=1), "fail", "crashes"),
        (1, sample(0, server_errors=1), "wait", ""),
        (1, sample(0, server_errors=5), "fail", "error_rate"),
        (60, sample(19, server_errors=1), "inconclusive", "error_rate"),
        (60, sample(990, server_errors=10), "pass", ""),
        (1, sample(50, ms=10), "fail", "latency"),
        (1, sample(19, ms=10), "wait", ""),
        (60, sample(1000, ms=2), "pass", ""),
    ],
)
def test_cases(elapsed, candidate, kind, trigger):
    """Each row is one situation with the default policy."""
    verdict = judge(POLICY, elapsed, BASE, candidate)
    assert (verdict.kind, verdict.trigger) == (kind, trigger)


def test_latency_is_not_judged_without_a_baseline():
    """Nobody asked the old version, or there was none: slowness cannot be told."""
    assert judge(POLICY, 60, Sample(), sample(1000, ms=900)).kind == "pass"


def test_a_policy_may_leave_latency_out():
    """max_latency_pct = 0 is no limit."""
    policy = Policy(max_latency_pct=0)
    assert judge(policy, 60, BASE, sample(1000, ms=900)).kind == "pass"


def test_what_the_old_version_did_too_is_not_held_against_the_new_one():
    """Garbage that applications send makes NaN in either version."""
    base = sample(1000, nonfinite=100)
    assert judge(POLICY, 60, base, sample(1000, nonfinite=95)).kind == "pass"


@given(
    elapsed=st.floats(0, 1000),
    requests=st.integers(0, 10**6),
    ms=st.floats(0.01, 1000),
    data=st.data(),
)
def test_without_a_fault_nothing_ever_fails(elapsed, requests, ms, data):
    """A clean version of the old one's speed waits, passes or is inconclusive."""
    base = sample(data.draw(st.integers(0, 10**6)), ms=ms)
    assert judge(POLICY, elapsed, base, sample(requests, ms=ms)).kind != "fail"


@given(
    requests=st.integers(0, 10_000),
    errors=st.integers(0, 10_000),
    nonfinite=st.integers(0, 10_000),
    crashes=st.integers(0, 3),
    ms=st.floats(0.01, 1000),
)
def test_more_time_never_turns_a_failure_into_a_pass(requests, errors, nonfinite, crashes, ms):
    """What fails early fails at the end as well, and the end always brings a verdict."""
    candidate = sample(
        requests, ms=ms, server_errors=errors, nonfinite=min(nonfinite, requests), crashes=crashes
    )
    early = judge(POLICY, 0, BASE, candidate)
    late = judge(POLICY, POLICY.probation_s, BASE, candidate)
    assert early.kind in {"wait", "fail"}
    assert late.kind != "wait"
    if early.kind == "fail":
        assert late.kind == "fail"


@given(total=st.integers(20, 5000), bad=st.integers(0, 5000))
def test_more_errors_are_never_better(total, bad):
    """The verdict is monotonic in the number of errors."""
    order = {"pass": 0, "inconclusive": 1, "fail": 2}
    bad = min(bad, total - 1)
    first = judge(POLICY, 60, BASE, sample(total - bad, server_errors=bad))
    second = judge(POLICY, 60, BASE, sample(total - bad - 1, server_errors=bad + 1))
    assert order[second.kind] >= order[first.kind]
