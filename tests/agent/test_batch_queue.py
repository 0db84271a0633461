"""Who goes next, who goes along, and how long anybody waits for company."""

from __future__ import annotations

import threading
import time

import numpy as np

from edgefleet_agent.worker.batch_queue import BatchQueue
from edgefleet_agent.worker.codec import Decoded
from edgefleet_agent.worker.joint import Member
from edgefleet_agent.worker.rows import Shape, join, shape_of, split
from edgefleet_shared.package import Batching

NEVER = 2**62
LONG_US = 60_000_000


def member(number, key="a", rows=1, deadline=NEVER):
    """A request that waits."""
    shape = Shape((key,) if key else None, rows)
    return Member(number, Decoded({}, "", {}), shape, deadline)


def queue(*members, most=4, delay_us=0, run_ns=0):
    """A queue in which these wait."""
    made = BatchQueue(Batching(most, delay_us), lambda: run_ns)
    for one in members:
        made.put(one)
    return made


def taken(waiting):
    """The numbers of the next batch."""
    return [one.number for one in waiting.take()]


def test_the_oldest_goes_next_and_takes_its_kind_along():
    """Past others, which are then the oldest themselves; nobody waits for one run more."""
    waiting = queue(member(1), member(2, "b"), member(3), member(4, "b"), member(5, None))
    assert [taken(waiting) for _ in range(4)] == [[1, 3], [2, 4], [5], []]


def test_a_batch_has_no_more_rows_than_it_may():
    """Those of a kind keep their order, also where a later one would still fit."""
    waiting = queue(member(1, rows=2), member(2, rows=3), member(3, rows=2), member(4, rows=9))
    assert [taken(waiting) for _ in range(4)] == [[1], [2], [3], [4]]


def test_whoever_cannot_be_joined_is_not_starved_by_those_who_can():
    """However many of the other kind come meanwhile, the third run is his at the latest."""
    waiting = queue(*(member(number) for number in range(4)), member(99, None))
    assert taken(waiting) == [0, 1, 2, 3]
    for number in range(4, 8):
        waiting.put(member(number))
    assert taken(waiting) == [99]


def test_a_full_batch_does_not_wait():
    """Nor does one behind which somebody else waits, or that cannot be joined at all."""
    full = queue(*(member(number) for number in range(4)), delay_us=LONG_US)
    assert taken(full) == [0, 1, 2, 3]
    mixed = queue(member(1), member(2, "b"), delay_us=LONG_US)
    assert taken(mixed) == [1]
    single = queue(member(1, None), delay_us=LONG_US)
    assert taken(single) == [1]


def test_company_is_waited_for():
    """A thread that waits takes who comes; another thread is not sent off with the first alone."""
    waiting = queue(member(1), most=2, delay_us=LONG_US)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(taken(waiting))) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.put(member(2))
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [[], [1, 2]]


def test_the_wait_ends_by_itself():
    """After the delay whoever is there goes, and a deadline counts for more than the delay."""
    assert taken(queue(member(1), delay_us=1000)) == [1]
    soon = time.monotonic_ns() + 100_000_000
    assert taken(queue(member(1, deadline=soon), delay_us=LONG_US)) == [1]
    past = queue(member(1, deadline=time.monotonic_ns() + 10**9), delay_us=LONG_US, run_ns=10**10)
    assert taken(past) == [1]


def test_settling_waits_for_answers_and_for_no_company():
    """Who must be alone need not wait until the delay of those before him is over."""
    waiting = queue(member(1), delay_us=LONG_US)
    settled = threading.Thread(target=waiting.settle)
    answering = threading.Thread(target=lambda: waiting.done(len(taken(waiting))))
    answering.start()
    settled.start()
    for thread in (settled, answering):
        thread.join(20)
        assert not thread.is_alive()


def test_no_more_wait_than_two_batches():
    """Who receives waits then; what is behind stays where it counts against no worker's memory."""
    waiting = queue(*(member(number, None) for number in range(8)))
    putting = threading.Thread(target=waiting.put, args=(member(8, None),))
    putting.start()
    assert taken(waiting) == [0]
    putting.join(20)
    assert not putting.is_alive()
    assert [taken(waiting) for _ in range(9)] == [*([number] for number in range(1, 9)), []]


def test_rows_are_joined_and_split_again():
    """In the order of the calls, also of several inputs, and of texts."""
    calls = [
        {"x": np.full((2, 3), 1.0), "t": np.array(["a", "b"], object)},
        {"x": np.full((1, 3), 2.0), "t": np.array(["c"], object)},
    ]
    assert shape_of(calls[0]).key == shape_of(calls[1]).key
    joined = join(calls)
    parts = list(split(joined, ["x", "t"], [2, 1]))
    assert [part["x"].tolist() for part in parts] == [call["x"].tolist() for call in calls]
    assert [part["t"].tolist() for part in parts] == [["a", "b"], ["c"]]


def test_what_cannot_be_joined_has_no_key():
    """No axis, no rows, or inputs that differ in them; another datatype is another key."""
    line, none = np.zeros((1, 3)), np.zeros((0, 3))
    for inputs in ({"x": np.float32(1)}, {"x": none}, {"x": line, "z": np.zeros((2, 3))}):
        assert shape_of({name: np.asarray(one) for name, one in inputs.items()}).key is None
    assert shape_of({"x": line}).key != shape_of({"x": line.astype(np.float32)}).key
    assert shape_of({"x": line}).key != shape_of({"x": np.zeros((1, 4))}).key
