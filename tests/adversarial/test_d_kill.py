"""Rows 38 and 39: killed at any call that changes the disk, and what was not fsynced is gone.

A sample that a build can afford; `python -m tests.faults.kill_points` and `python -m
tests.faults.power_cut` take every point, by strace and by a preloaded library.
"""

from __future__ import annotations

import pytest

from edgefleet_shared.identifiers import sha256_digest
from tests.agent.world import until
from tests.faults.kill_points import CALLS, KillCourse
from tests.faults.power_cut import not_below

SAMPLE = {"fsync": 3, "rename": 2, "unlink": 1, "link": 1}
pytestmark = [pytest.mark.strace, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def course():
    """A device that serves 1.0.0 and is asked for 2.0.0."""
    course = KillCourse()
    yield course
    course.close()


@pytest.fixture(scope="module")
def points(course):
    """How often each call can be the last of an update."""
    return course.points()


def test_38_an_update_calls_what_is_watched(points):
    """An update makes calls of the names that are killed at, fsync and rename most of all."""
    assert points["fsync"] > 20
    assert points["rename"] > 10
    assert set(points) <= set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_38_killed_at_a_call_it_is_old_or_new(course, points, call):
    """At calls spread over the update: old xor new serves after it, and no floor is lower."""
    many, wanted = points[call], SAMPLE[call]
    assert many or call == "link"  # an update links nothing today
    chosen = sorted({1 + round((index + 0.5) * (many - 1) / wanted) for index in range(wanted)})
    hits = [
        course.kill(call, number, gateway_too=bool(index % 2))
        for index, number in enumerate(chosen if many else [])
    ]
    # Threads take turns as they like: the last of one name may never come.
    assert sum(hits) >= len(hits) - 1


def test_39_an_unfsynced_download_that_is_emptied_is_fetched_anew(course):
    """What was written and not fsynced is gone after a power cut: it is hashed and redone."""
    device, world = course.device, course.world
    course._again(0)
    device.reaches(course.two.deployment, "succeeded")
    before = course.floors()
    three = world.publish("3.0.0", body=b"0123456789abcdef" * 16_384)
    world.server.hold_at = 200_000
    device.assign(three)
    partials = device.state / "store" / "partial"
    until(lambda: any(p.stat().st_size >= 190_000 for p in partials.iterdir()), "a part")
    device.cut_power()
    world.server.hold_at = None
    written = course.unsafe()
    assert any(path.parent == partials for path in written)
    for path in written:
        if path.is_file():
            path.write_bytes(b"")
    device.start()
    until(lambda: device.gateway.routed("digits") == course.two.manifest, "2.0.0 meanwhile")
    device.reaches(three.deployment, "succeeded")
    until(lambda: device.gateway.routed("digits") == three.manifest, "3.0.0")
    assert not_below(course.floors(), before)
    device.cut_power()


@pytest.mark.parametrize("what", ["manifest", "weights"])
def test_39_a_blob_that_is_empty_is_found_by_its_hash(course, what):
    """A blob of what serves is emptied while the power is away: it is found, and fetched again."""
    device, world = course.device, course.world
    course._again(0)
    device.reaches(course.two.deployment, "succeeded")
    device.cut_power()
    weights = sha256_digest(b"weights of digits 2.0.0 " * 1000)
    digest = course.two.manifest if what == "manifest" else weights
    path = device.state / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.chmod(0o644)
    path.write_bytes(b"")
    device.start()
    until(lambda: device.gateway.routed("digits") == course.two.manifest, "2.0.0 again", 60)
    assert path.read_bytes() == world.blobs[digest]
    device.cut_power()
