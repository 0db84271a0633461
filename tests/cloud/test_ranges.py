"""Which sequence numbers have arrived: the same answer in whatever order they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.reports.ranges import ANEW, MAX_RANGES, Ranges


@given(st.lists(st.integers(1, 40)))
def test_ranges_are_a_set_that_knows_its_holes(numbers: list[int]) -> None:
    """Membership, news and missing numbers are those of a plain set."""
    ranges, plain = Ranges(), set()
    for number in numbers:
        assert ranges.add(number) is (number not in plain)
        plain.add(number)
    assert all((number in ranges) is (number in plain) for number in range(45))
    wanted = set(range(min(plain), max(plain) + 1)) - plain if plain else set()
    assert ranges.missing == len(wanted)


@given(
    st.sets(st.integers(1, 40)).flatmap(lambda s: st.tuples(st.just(s), st.permutations(sorted(s))))
)
def test_order_does_not_matter(case: tuple[set[int], list[int]]) -> None:
    """Sorted or shuffled, the stored ranges are the same, and survive storing."""
    numbers, shuffled = case
    one, other = Ranges(), Ranges()
    for number in sorted(numbers):
        one.add(number)
    for number in shuffled:
        other = Ranges(other.to_list(), other.lost)
        other.add(number)
    assert one.to_list() == other.to_list()


def test_a_jump_far_ahead_is_a_new_beginning() -> None:
    """A device that lost its outbox numbers on from the time; that is not a billion lost items."""
    ranges = Ranges()
    for number in (1, 2, 5, ANEW * 1000, ANEW * 1000 + 2):
        ranges.add(number)
    assert (ranges.missing, ranges.beginnings) == (3, 1)


def test_a_device_cannot_make_the_ranges_grow_without_end() -> None:
    """Beyond the limit the oldest holes are closed and counted as lost for good."""
    ranges = Ranges()
    for number in range(2, 2 * MAX_RANGES + 22, 2):
        ranges.add(number)
    assert len(ranges.to_list()) == MAX_RANGES
    assert ranges.lost == 10
    assert ranges.missing == MAX_RANGES + 9
    assert not ranges.add(3)
