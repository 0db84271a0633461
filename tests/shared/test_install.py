"""The rule of installation: everything must hold, and no wrong ever makes a right."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.install import (
    MAX_COUNTER_JUMP,
    Case,
    DeviceIdentity,
    Release,
    why_not,
    why_not_serve,
)
from edgefleet_shared.messages import Assignment, SlotAssignment
from edgefleet_shared.package import target_path
from edgefleet_shared.times import format_time
from tests.shared.keys import NOW

HARDWARE = ["rpi5", "jetson-orin", "generic-x86_64"]
names = st.sampled_from(["demo", "cam-1", "line-2", "x"])
digests = st.binary(max_size=4).map(sha256_digest)


@st.composite
def good_cases(draw: st.DrawFn) -> Case:
    """Draw a case in which everything holds, each value anywhere in what is allowed."""
    me = DeviceIdentity(draw(names), draw(names), draw(digests))
    floor = draw(st.integers(0, 2**40))
    counter = floor + draw(st.integers(1, MAX_COUNTER_JUMP))
    release_counter = draw(st.integers(1, 1000))
    floors = [draw(st.integers(0, release_counter)) for _ in range(2)]
    slot = SlotAssignment(
        "run", "d-1", "digits", "1.0.0", draw(digests), draw(st.integers(1, 2**16)), release_counter
    )
    hardware = draw(st.sampled_from(HARDWARE))
    named = {draw(st.sampled_from([hardware, "*"])), *draw(st.sets(st.sampled_from(HARDWARE)))}
    release = Release(
        target_path("digits", "1.0.0"), slot.manifest, slot.size, frozenset(named),
        release_counter, floors[0],
    )  # fmt: skip
    expires = NOW + timedelta(milliseconds=draw(st.integers(1, 10**9)))
    order = Assignment(
        1, me.fleet, me.device, me.key, counter, format_time(NOW), format_time(expires),
        {"digits": slot},
    )  # fmt: skip
    return Case(me, hardware, NOW, floor, "", order, slot, release, floors[1])


def ordered(**changes: Any) -> Callable[[Case], Case]:
    """Return what changes a field of the assignment; a function gets the case."""

    def change(case: Case) -> Case:
        made = {k: v(case) if callable(v) else v for k, v in changes.items()}
        return case._replace(assignment=msgspec.structs.replace(case.assignment, **made))

    return change


def released(**changes: Any) -> Callable[[Case], Case]:
    """Return what changes a field of the catalog's entry; a function gets the entry."""

    def change(case: Case) -> Case:
        made = {k: v(case.release) if callable(v) else v for k, v in changes.items()}
        return case._replace(release=case.release._replace(**made))

    return change


WRONGS: dict[str, tuple[Callable[[Case], Case], str]] = {
    "catalog not refreshed": (lambda c: c._replace(catalog="metadata_expired"), "metadata_expired"),
    "catalog below a floor": (
        lambda c: c._replace(catalog="metadata_rollback"), "metadata_rollback"),
    "no director signed": (lambda c: c._replace(assignment=None), "signature"),
    "another fleet": (ordered(fleet="other"), "wrong_fleet"),
    "another device": (ordered(device="other"), "wrong_device"),
    "another key": (ordered(key=sha256_digest(b"another key")), "wrong_key"),
    "the counter accepted last": (ordered(counter=lambda c: c.floor), "replayed"),
    "an older counter": (ordered(counter=-1), "replayed"),
    "a counter that jumps": (
        ordered(counter=lambda c: c.floor + MAX_COUNTER_JUMP + 1), "fast_forward"),
    "expired just now": (ordered(expires=format_time(NOW)), "expired"),
    "expired long ago": (ordered(expires="2001-01-01T00:00:00Z"), "expired"),
    "in no publisher's role": (lambda c: c._replace(release=None), "not_in_catalog"),
    "another path": (released(path=target_path("digits", "1.0.1")), "not_in_catalog"),
    "another digest": (released(digest=sha256_digest(b"other bytes")), "disagree"),
    "another length": (released(length=lambda r: r.length + 1), "disagree"),
    "another counter": (released(release_counter=lambda r: r.release_counter + 1), "disagree"),
    "other hardware": (released(hardware=frozenset({"other", "rpi"})), "wrong_hardware"),
    "no hardware": (released(hardware=frozenset()), "wrong_hardware"),
    "below the release's floor": (
        released(security_floor=lambda r: r.release_counter + 1), "below_security_floor"),
    "below the device's floor": (
        lambda c: c._replace(security_floor=c.slot.release_counter + 1), "below_security_floor"),
    "no variant": (lambda c: c._replace(fitting=0), "no_compatible_variant"),
    "two variants": (lambda c: c._replace(fitting=2), "ambiguous_variant"),
}  # fmt: skip


@given(good_cases())
def test_what_holds_in_everything_is_installed(case):
    """Wherever in its range each value lies, a case without fault has no objection."""
    assert not why_not(case)


@pytest.mark.parametrize(("wrong", "code"), WRONGS.values(), ids=WRONGS)
@given(case=good_cases())
def test_one_wrong_is_enough(wrong, code, case):
    """Whatever else holds, changing any one input from good to bad refuses, by its own code."""
    assert why_not(wrong(case)) == code


@given(case=good_cases(), wrongs=st.lists(st.sampled_from(list(WRONGS)), min_size=1, max_size=6))
def test_no_wrongs_together_make_a_right(case, wrongs):
    """No combination of bad inputs installs, in whatever order they came about."""
    for name in wrongs:
        if case.assignment and case.release:  # of what is not there, nothing more can be wrong
            case = WRONGS[name][0](case)
    assert why_not(case)


@given(case=good_cases(), wrong=st.sampled_from(["in no publisher's role", "no variant"]))
def test_to_stop_needs_no_package(case, wrong):
    """An order to serve nothing is judged by who gave it, to whom and when alone."""
    stop = msgspec.structs.replace(case.slot, mode="stop")
    stopped = WRONGS[wrong][0](case)._replace(slot=stop)
    assert not why_not(stopped)
    assert not why_not(stopped._replace(slot=None))
    assert why_not(ordered(device="other")(stopped)) == "wrong_device"


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_higher_floor_never_allows_more(counter, floor, more):
    """What a floor forbids, every higher floor forbids; what it allows, every lower one allows."""
    if why_not_serve(counter, floor):
        assert why_not_serve(counter, floor + more)
    else:
        assert not why_not_serve(counter, max(0, floor - more))
