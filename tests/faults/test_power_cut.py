"""The power fails at any call that changes the disk: the old version or the new, never neither.

A sample of the calls; `python -m tests.faults.power_cut` takes every one.
"""

from __future__ import annotations

import pytest

from tests.faults.power_cut import Course, compiler

SAMPLE = 10


@pytest.mark.skipif(compiler() is None, reason="no C compiler; the library that cuts is in C")
@pytest.mark.timeout(180)
def test_an_update_survives_a_power_cut_at_any_call():
    """Old or new serves after each; no floor is lower; no number of a stream means two things."""
    course = Course()
    try:
        calls = course.whole()
        assert len(calls) > 4 * SAMPLE
        names = {call.split()[0] for call in calls}
        assert {"fsync", "fdatasync", "rename", "ftruncate"} <= names
        points = [round((index + 0.5) * len(calls) / SAMPLE) for index in range(SAMPLE)]
        hits = [course.cut(at, gateway_too=bool(index % 2)) for index, at in enumerate(points)]
        assert sum(hits) >= SAMPLE - 2  # threads take turns as they like: the last may never come
    finally:
        course.close()
