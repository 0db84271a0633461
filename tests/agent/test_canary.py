"""A canary share by policy: begun, judged, passed or refused, and begun anew after a restart."""

from __future__ import annotations

import msgspec
import pytest

from edgefleet_shared.messages import Policy
from tests.agent.running import Agent
from tests.agent.world import World, until

SHARE = Policy(probation_s=0, min_requests=10, standby_s=0, drain_s=0, canary_s=20, canary_pct=25)
SHORT = msgspec.structs.replace(SHARE, canary_s=1)


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running agent over a fake gateway, serving 1.0.0."""
    agent = Agent(world).start()
    agent.one = world.publish("1.0.0")
    agent.assign(agent.one)
    agent.reaches("succeeded")
    yield agent
    agent.close()


def try_out(agent, world, version: str = "2.0.0", policy: Policy = SHARE):
    """Assign a version with a share, and wait until it has it."""
    new = msgspec.structs.replace(world.publish(version), policy=policy)
    agent.assign(new)
    until(lambda: (new.manifest, policy.canary_pct) in agent.gateway.shares, "the share")
    return new


def test_a_share_that_goes_well_is_followed_by_the_swap(world, agent):
    """The report says `canary` meanwhile, the old version is routed; the receipt has the result."""
    agent.gateway.hold.add("Canary")  # the window has begun by then, and lasts until it is let go
    new = msgspec.structs.replace(world.publish("2.0.0"), policy=SHORT)
    agent.assign(new)
    report = until(lambda: (r := agent.transport.slot("digits")).get("reason") == "canary" and r)
    assert (report["state"], report["active"]) == ("staged", agent.one.manifest)
    assert "25 % of the clients" in report["detail"]
    until(lambda: "Canary" in agent.gateway.seen, "the share")
    assert agent.gateway.routed("digits") == agent.one.manifest
    agent.gateway.answer("digits", 90)
    agent.gateway.answer("digits", 30, of=new.manifest)
    agent.gateway.let_go("Canary")
    until(lambda: agent.gateway.routed("digits") == new.manifest, "the flip")
    agent.reaches("succeeded")
    assert agent.gateway.shares[-1][1] == 0
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    canary = receipt["canary"]
    assert (canary["verdict"], canary["pct"], canary["requests"]) == ("pass", 25, 30)
    assert canary["live_requests"] == 90
    assert canary["p50_us"] > 0
    assert agent.event("canary_passed")["data"]["canary"] == canary


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"count": 50, "nonfinite": 50}, "canary_nonfinite"),
        ({"count": 1, "server_errors": 200}, "canary_error_rate"),
        ({"count": 200, "compute_ns": 1_000_000_000}, "canary_latency"),
        ({"count": 1, "crashes": 1}, "canary_crashes"),
    ],
)
def test_a_breach_ends_the_share_and_refuses_the_version(world, agent, answers, reason):
    """Its own code, the share back to none, the worker released; the old one served all along."""
    agent.gateway.answer("digits", 200)
    new = try_out(agent, world)
    agent.gateway.answer("digits", of=new.manifest, **answers)
    report = agent.reaches("failed")
    assert (report["reason"], report["verdict"]) == (reason, "fail")
    assert agent.gateway.shares[-1] == ("", 0)
    until(lambda: agent.gateway.loaded() == {agent.one.manifest: "active"}, "the release")
    assert "Flip" not in agent.gateway.seen[agent.gateway.seen.index("Canary") :]
    assert agent.event("canary_failed")["data"]["canary"]["verdict"] == "fail"


def test_a_worker_that_has_ended_fails_it(world, agent):
    """It crashed and is not restarted: nothing is left to look at."""
    new = try_out(agent, world, policy=msgspec.structs.replace(SHARE, max_crashes=5))
    agent.gateway.die(new.manifest)
    assert agent.reaches("failed")["reason"] == "canary_crashes"


def test_few_requests_decide_nothing(world, agent):
    """Nobody of the share asked: inconclusive, and probation decides after the flip."""
    new = try_out(agent, world, policy=SHORT)
    agent.reaches("succeeded")
    assert agent.gateway.routed("digits") == new.manifest
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    assert receipt["canary"]["verdict"] == "inconclusive"


def test_a_newer_version_ends_a_share(world, agent):
    """Superseded in the midst of it; the next one comes, by a share of its own."""
    old = try_out(agent, world)
    new = try_out(agent, world, "3.0.0", SHORT)
    agent.reaches("succeeded")
    assert agent.gateway.routed("digits") == new.manifest
    assert ("", 0) in agent.gateway.shares[agent.gateway.shares.index((old.manifest, 25)) :]


def test_the_first_version_has_nobody_to_share_with(world):
    """Where nothing serves there is no share: it is routed at once."""
    agent = Agent(world).start()
    try:
        agent.assign(msgspec.structs.replace(world.publish("1.0.0"), policy=SHARE))
        agent.reaches("succeeded")
        assert all(not pct for _, pct in agent.gateway.shares)
    finally:
        agent.close()


def test_after_a_restart_of_agentd_it_begins_anew(world, agent):
    """The old version serves meanwhile, a share that was left is ended, and a new one begins."""
    new = try_out(agent, world)
    agent.stop(end_gateway=False)
    count = len(agent.gateway.shares)
    assert agent.gateway.shares[-1] == ("", 0)
    agent.start()
    until(lambda: len(agent.gateway.shares) > count + 1, "the next share")
    assert agent.gateway.shares[count : count + 2] == [("", 0), (new.manifest, 25)]
    assert agent.gateway.routed("digits") == agent.one.manifest


def test_a_new_gateway_gets_both_versions_before_the_share_begins_anew(world, agent):
    """The gateway dies in the midst of it: the old version is routed first, then the new loaded."""
    new = try_out(agent, world)
    agent.gateway.close()
    gateway = agent.new_gateway()
    until(lambda: (new.manifest, 25) in gateway.shares, "the share in the new gateway")
    assert gateway.loaded() == {agent.one.manifest: "active", new.manifest: "idle"}
