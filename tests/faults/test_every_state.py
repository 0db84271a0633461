"""SIGKILL at the journal's every state, before the write and after it: old xor new, always serving.

Which states there are is read from the transition table, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import time

import msgspec
import pytest

from edgefleet_shared.identifiers import new_id
from edgefleet_shared.messages import Policy
from edgefleet_shared.states import DEPLOYMENT, DONE, DeploymentState
from tests.agent.world import World, until
from tests.faults.device import Device, Witness

S = DeploymentState
OF_THE_CLOUD = {S.ASSIGNED, S.OFFERED, S.CANCELED, S.TIMED_OUT}
"""Before a device has it, and two ends that the fleet manager alone writes today."""
WATCHED = Policy(probation_s=600, min_requests=10, standby_s=0, drain_s=0)


class Course:
    """A device that serves, and versions to come."""

    def __init__(self) -> None:
        self.world = World()
        self.device = Device(self.world)
        self.device.start()
        self._number = 0
        self.old = self.next()
        self.device.assign(self.old)
        self.device.reaches(self.old.deployment, "succeeded")

    def next(self, **options):
        """Publish one more version."""
        self._number += 1
        return self.world.publish(f"{self._number}.0.0", **options)

    def restarted(self, **environ) -> None:
        """Start agentd anew, with or without a death before it."""
        self.device.kill()
        self.device.start(**environ)
        until(lambda: self.device.gateway.routed("digits") == self.old.manifest, "the old version")

    def close(self) -> None:
        """End it."""
        self.device.close()
        self.world.close()


@pytest.fixture(scope="module")
def course():
    """One course for all; each case leaves a device that serves and has settled."""
    course = Course()
    yield course
    course.close()


@pytest.fixture(autouse=True)
def clean(course):
    """Take back what a case has done to gateway and blob server."""
    yield
    course.device.gateway.refuse.clear()
    course.world.server.hold_at = None


def good(course):
    """A version that comes up and stays."""
    new = course.next()
    course.device.assign(new)
    return new, new


def misbehaving(course):
    """A version that is rolled back for its answers."""
    new = msgspec.structs.replace(course.next(), policy=WATCHED)
    course.device.assign(new)
    device = course.device
    until(lambda: device.gateway.routed("digits") == new.manifest, "the flip")
    going = {S.SWAPPING, S.PROBATION}
    while device.process.poll() is None and device.record().deployment.state in going:
        device.gateway.answer("digits", 20, nonfinite=20)  # until probation has counted them
        time.sleep(0.05)
    return new, course.old


def cannot_go_back(course):
    """A version that misbehaves when the one before can neither be routed to nor loaded."""
    gateway = course.device.gateway
    gateway.refuse |= {(name, course.old.manifest): "load_failed" for name in ("Flip", "Load")}
    new, _ = misbehaving(course)
    return new, new


def unproved(course):
    """A version that does not prove itself."""
    course.device.gateway.refuse[("Prove", "")] = "golden_mismatch"
    new = course.next()
    course.device.assign(new)
    return new, course.old


def of_another_name(course):
    """A version whose manifest is of another."""
    new = course.next(change=lambda m: msgspec.structs.replace(m, version="99.0.0"))
    course.device.assign(new)
    return new, course.old


def for_other_hardware(course):
    """A version without a variant for this device."""

    def change(manifest):
        variants = [msgspec.structs.replace(v, hardware=["other"]) for v in manifest.variants]
        return msgspec.structs.replace(manifest, variants=variants)

    new = course.next(change=change)
    course.device.assign(new)
    return new, course.old


def again(course):
    """The version that serves, by a new deployment."""
    new = msgspec.structs.replace(course.old, deployment=new_id())
    course.device.assign(new)
    return new, course.old


def overtaken(course):
    """A version that is still being fetched when the next is assigned."""
    course.world.server.hold_at = 5_000
    new, later = course.next(), course.next()
    course.device.assign(new)
    course.device.reaches(new.deployment, "downloading")
    course.world.server.hold_at = None
    course.device.assign(later)
    return new, later


COURSES = {
    S.ACCEPTED: good,
    S.DOWNLOADING: good,
    S.VERIFYING: good,
    S.PREPARING: good,
    S.STAGED: good,
    S.SWAPPING: good,
    S.PROBATION: good,
    S.SUCCEEDED: good,
    S.ROLLING_BACK: misbehaving,
    S.ROLLED_BACK: misbehaving,
    S.ROLLBACK_FAILED: cannot_go_back,
    S.FAILED: unproved,
    S.REJECTED: of_another_name,
    S.NO_COMPATIBLE_VARIANT: for_other_hardware,
    S.ALREADY_CURRENT: again,
    S.SUPERSEDED: overtaken,
}


def test_every_state_of_the_table_has_its_course():
    """What the table can lead a device to is killed below, and nothing else is."""
    table = {state for state, _ in DEPLOYMENT} | set(DEPLOYMENT.values())
    assert set(COURSES) == table - OF_THE_CLOUD


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("state", COURSES)
def test_killed_at_a_state_it_serves_and_comes_to_its_end(course, state, side):
    """Dead by SIGKILL at the write of the state: it serves meanwhile, and ends as it should."""
    device = course.device
    course.restarted(KILL_AT=f"{state.value}:{side}")
    with Witness(device) as witness:
        new, final = COURSES[state](course)
        until(lambda: device.process.poll() is not None, f"its death; {device.tail()}")
        assert device.process.returncode == -9
        device.start()
        last = new if final is course.old else final
        device.reaches(last.deployment, *(s.value for s in DONE))
        until(lambda: device.gateway.routed("digits") == final.manifest, "what should serve")
    assert witness.seen <= {course.old.manifest, new.manifest, final.manifest}
    course.old = final
