"""The wall clock jumps by years while a version comes: waits are not measured by it."""

from __future__ import annotations

import time

import msgspec
import pytest

from edgefleet_shared.messages import Policy
from tests.agent.running import Agent
from tests.agent.world import World, until

YEARS = 10 * 365.25 * 86_400
WATCHED = Policy(probation_s=1, min_requests=0, standby_s=0, drain_s=0)


def at(agent, slot) -> str:
    """Return the state of a slot's deployment in the journal, '' while it is another's."""
    deployment = agent.record().deployment
    return deployment.state.value if deployment.id == slot.deployment else ""


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
@pytest.mark.parametrize("state", ["downloading", "preparing", "probation"])
def test_a_clock_that_jumps_disturbs_no_deployment(jump, state):
    """Ten years on or back in the midst of it: it succeeds, and the next assignment is taken."""
    world = World()
    shift = [0.0]
    agent = Agent(world, clock=lambda: time.time() + shift[0])
    try:
        agent.start()
        one = world.publish("1.0.0")
        agent.assign(one)
        agent.reaches("succeeded")
        two = msgspec.structs.replace(world.publish("2.0.0"), policy=WATCHED)
        if state == "downloading":
            world.server.hold_at = 5_000
        elif state == "preparing":
            agent.gateway.hold.add("Prove")
        agent.assign(two)
        until(lambda: at(agent, two) == state)
        shift[0] = jump
        world.server.hold_at = None
        world.server.go.set()
        agent.gateway.let_go("Prove")
        until(lambda: at(agent, two) == "succeeded")
        assert agent.gateway.routed("digits") == two.manifest
        shift[0] = 0.0
        three = world.publish("3.0.0")
        agent.assign(three)
        until(lambda: agent.gateway.routed("digits") == three.manifest)
    finally:
        agent.close()
        world.close()
