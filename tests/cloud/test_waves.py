"""Who is in which wave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_cloud.rollouts.waves import WaveSpec, split
from edgefleet_shared.errors import InvalidInputError

FLEET = {f"cam-{n}": "rpi5" if n % 5 else "nano" for n in range(100)}
CANARY = WaveSpec("canary", devices=("cam-7", "cam-3"))
REST = WaveSpec("rest", rest=True)


def test_named_devices_come_first_and_in_their_own_wave():
    """Canary devices are who the operator says, and appear nowhere else."""
    canary, tenth, rest = split([CANARY, WaveSpec("tenth", percent=10), REST], FLEET, "r1")
    assert canary == ("cam-7", "cam-3")
    assert len(tenth) == 10
    assert not {"cam-7", "cam-3"} & {*tenth, *rest}
    assert sorted((*canary, *tenth, *rest)) == sorted(FLEET)


def test_a_share_holds_its_share_of_each_hardware_class():
    """20 of 100 devices are nanos, so 2 of 10."""
    tenth, _ = split([WaveSpec("tenth", percent=10), REST], FLEET, "r1")
    assert sum(FLEET[device] == "nano" for device in tenth) == 2


@given(seed=st.text(max_size=20), count=st.integers(1, 100))
def test_membership_is_frozen_by_the_seed(seed, count):
    """The same rollout splits the same, however its devices are listed."""
    specs = [WaveSpec("some", count=count), REST]
    backwards = dict(reversed(FLEET.items()))
    assert split(specs, FLEET, seed) == split(specs, backwards, seed)
    assert sorted(sum(split(specs, FLEET, seed), ())) == sorted(FLEET)


def test_another_rollout_takes_other_devices():
    """No device is the first victim of every rollout."""
    firsts = {split([WaveSpec("one", count=1), REST], FLEET, f"r{n}")[0] for n in range(30)}
    assert len(firsts) > 15


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([CANARY, WaveSpec("more", devices=("cam-3",)), REST], "'cam-3' is in wave 'canary' and"),
        ([WaveSpec("canary", devices=("ghost",)), REST], "'ghost' of wave 'canary' is not among"),
        ([CANARY], "98 devices are in no wave"),
        ([REST, CANARY], "takes the rest"),
        ([CANARY, WaveSpec("canary", rest=True)], "Two waves are named 'canary'"),
        ([], "at least one wave"),
    ],
    ids=["device in two waves", "unknown device", "left over", "after the rest", "name", "none"],
)
def test_a_split_without_sense_is_refused_by_name(specs, says):
    """The message names the device or the wave."""
    with pytest.raises(InvalidInputError, match=says) as refused:
        split(specs, FLEET, "r1")
    assert refused.value.code == "waves"
