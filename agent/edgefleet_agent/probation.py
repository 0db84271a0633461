"""Is the new version good? Pure: counts in, verdict out; few observations decide little.

A limit counts as broken early only when chance would explain it less than once in 10 000 looks, at
the end of probation less than once in 20 (Chernoff's bound on a binomial tail, so a little on the
safe side). A limit of zero is broken by the first case, since chance explains none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Literal, NamedTuple

from edgefleet_shared.histogram import EDGES_NS, quantile_ns
from edgefleet_shared.messages import Policy

EARLY = log(1e-4)
FINAL = log(0.05)


class Sample(NamedTuple):
    """What one version answered; `requests` were 200, `compute` is a `histogram` of worker time."""

    requests: int = 0
    server_errors: int = 0
    nonfinite: int = 0
    crashes: int = 0
    compute: Mapping[int, int] = {}


class Verdict(NamedTuple):
    """What to do. `trigger` of a failure: error_rate, nonfinite, latency or crashes."""

    kind: Literal["wait", "pass", "fail", "inconclusive"]
    trigger: str = ""
    detail: str = ""


def judge(policy: Policy, elapsed_s: float, baseline: Sample, candidate: Sample) -> Verdict:
    """Judge the candidate.

    Args:
        policy: The limits.
        elapsed_s: Seconds since the route moved.
        baseline: The previous version, over its life in this gateway; may be empty.
        candidate: The new version since the route moved.
    """
    over = elapsed_s >= policy.probation_s
    if candidate.crashes > policy.max_crashes:
        detail = f"{candidate.crashes} crashes; {policy.max_crashes} are allowed."
        return Verdict("fail", "crashes", detail)
    answers = candidate.requests + candidate.server_errors
    doubts: list[Verdict] = []
    for found in (
        _share("error_rate", candidate.server_errors, answers, _error_limit(policy, baseline)),
        _share("nonfinite", candidate.nonfinite, candidate.requests, _nan_limit(policy, baseline)),
        _latency(policy, baseline, candidate),
    ):
        if found is None:
            continue
        trigger, detail, chance = found
        if chance < EARLY or (over and answers >= policy.min_requests and chance < FINAL):
            return Verdict("fail", trigger, detail)
        doubts.append(Verdict("inconclusive", trigger, detail))
    if not over:
        return Verdict("wait")
    if answers < policy.min_requests:
        detail = f"{answers} answers; {policy.min_requests} are needed for a verdict."
        return Verdict("inconclusive", "", detail)
    return doubts[0] if doubts else Verdict("pass")


_Found = tuple[str, str, float] | None
"""Trigger, detail and the log of the chance that the limit holds all the same."""


def _share(trigger: str, bad: int, total: int, limit: float) -> _Found:
    if not total or bad <= limit * total:
        return None
    what = "are server errors" if trigger == "error_rate" else "hold NaN or infinity"
    detail = f"{bad} of {total} answers {what}; {limit:.2%} may."
    return trigger, detail, _tail(bad, total, limit)


def _error_limit(policy: Policy, baseline: Sample) -> float:
    answers = baseline.requests + baseline.server_errors
    known = answers >= max(policy.min_requests, 1)
    before = baseline.server_errors / answers if known else 0.0
    return max(policy.max_error_ppm / 1e6, before)


def _nan_limit(policy: Policy, baseline: Sample) -> float:
    known = baseline.requests >= max(policy.min_requests, 1)
    before = baseline.nonfinite / baseline.requests if known else 0.0
    return max(policy.max_nonfinite_ppm / 1e6, before)


def _latency(policy: Policy, baseline: Sample, candidate: Sample) -> _Found:
    """Sign test: are more than half of the candidate's answers slower than the limit?"""
    before = quantile_ns(baseline.compute, 0.5)
    now = quantile_ns(candidate.compute, 0.5)
    total = sum(candidate.compute.values())
    if (
        policy.max_latency_pct <= 0
        or before is None
        or now is None
        or sum(baseline.compute.values()) < policy.min_requests
        or total < policy.min_requests
    ):
        return None
    limit = before * policy.max_latency_pct / 100
    slow = sum(n for i, n in candidate.compute.items() if i and EDGES_NS[i - 1] >= limit)
    if 2 * slow <= total:
        return None
    detail = f"Median {now / 1e6:.3f} ms; the previous version needed {before / 1e6:.3f} ms."
    return "latency", detail, _tail(slow, total, 0.5)


def _tail(bad: int, total: int, limit: float) -> float:
    """Return the log of a bound on P(at least `bad` of `total`) when each has chance `limit`."""
    share = bad / total
    if share <= limit:
        return 0.0
    if limit <= 0:
        return float("-inf")
    if share >= 1:
        return total * log(limit)
    return -total * (share * log(share / limit) + (1 - share) * log((1 - share) / (1 - limit)))
