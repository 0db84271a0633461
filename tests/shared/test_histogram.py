"""Latency histograms: exact under merging, honest as quantiles."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import histogram
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.histogram import EDGES_NS, bucket, difference, merge, quantile_ns

values = st.integers(EDGES_NS[0], EDGES_NS[-1] - 1)
histograms = st.dictionaries(st.integers(0, len(EDGES_NS)), st.integers(1, 10**6))


def counts_of(samples: list[int]) -> dict[int, int]:
    """Return the histogram of samples."""
    return dict(Counter(bucket(sample) for sample in samples))


def test_edges_are_the_contract():
    """The edges are fixed for ever: 109 of them, 1 us to 2^27 us, each above the one before."""
    assert len(EDGES_NS) == 109
    assert (EDGES_NS[0], EDGES_NS[4], EDGES_NS[-1]) == (1000, 2000, 1000 * 2**27)
    assert list(EDGES_NS) == sorted(set(EDGES_NS))


@given(st.integers(0, 10**12))
def test_a_value_lies_between_its_buckets_edges(value):
    """Bucket i holds values from the edge below, inclusive, to its own, exclusive."""
    index = bucket(value)
    assert index == 0 or value >= EDGES_NS[index - 1]
    assert index == len(EDGES_NS) or value < EDGES_NS[index]


@given(st.lists(values), st.lists(values))
def test_merging_equals_measuring_together(one, two):
    """The merge of two devices' histograms is the histogram of all their samples."""
    assert merge(counts_of(one), counts_of(two)) == counts_of(one + two)


@given(histograms, histograms, histograms)
def test_merging_does_not_care_about_grouping(a, b, c):
    """Any grouping and any order of parts gives the same sum, and the parts stay as they were."""
    before = dict(a)
    assert merge(merge(a, b), c) == merge(a, merge(c, b)) == merge(c, b, a)
    assert a == before
    assert merge() == {}


@given(histograms, histograms)
def test_difference_undoes_merge(earlier, added):
    """Between two readings of one counter lies exactly what was added."""
    assert difference(merge(earlier, added), earlier) == added


@given(st.lists(values, min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_within_nine_percent(samples, q):
    """Read from a histogram, a quantile is within 9.1 % of the sample of that rank."""
    exact = sorted(samples)[ceil(q * len(samples)) - 1]
    found = quantile_ns(counts_of(samples), q)
    assert found == pytest.approx(exact, rel=0.091)


@given(histograms.filter(bool), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_quantiles_grow(counts, shares):
    """A larger share never gives a smaller quantile."""
    found = [quantile_ns(counts, q) for q in sorted(shares)]
    assert found == sorted(found)


def test_quantiles_at_the_ends():
    """Below the first edge and beyond the last a quantile is a number; of nothing it is None."""
    assert quantile_ns({}, 0.5) is None
    assert quantile_ns({5: 0}, 0.5) is None
    assert quantile_ns({bucket(0): 1}, 0.5) < EDGES_NS[0]
    assert quantile_ns({bucket(10**12): 1}, 0.5) > EDGES_NS[-1]
    assert quantile_ns({3: 0, 9: 1}, 0) == quantile_ns({9: 1}, 1)


@pytest.mark.parametrize("counts", [{-1: 1}, {len(EDGES_NS) + 1: 1}, {10**9: 1}, {4: -1}])
def test_a_foreign_histogram_is_checked(counts):
    """A bucket that does not exist and a negative count are refused before anybody sums them."""
    with pytest.raises(InvalidInputError):
        histogram.check(counts)


@given(histograms)
def test_our_own_histograms_pass_the_check(counts):
    """Whatever `bucket` can produce passes."""
    histogram.check(counts)
