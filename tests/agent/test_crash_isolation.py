"""A version that crashes is given up, and stays given up until it is assigned anew."""

from __future__ import annotations

import os
import signal
import subprocess

import msgspec
import pytest

from edgefleet_shared.identifiers import new_id
from edgefleet_shared.messages import Policy
from tests.agent.running import WholeAgent
from tests.agent.world import World, until
from tests.models import linear

WATCHED = Policy(probation_s=600, min_requests=0, max_crashes=9, standby_s=0, drain_s=0)
WARM = Policy(probation_s=0, min_requests=0, standby_s=600, drain_s=0)
INPUT = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running device."""
    agent = WholeAgent(world).start()
    yield agent
    agent.close()


def publish(world, version, scale=2.0, policy=None):
    """A version of its own scale."""
    slot = world.publish(version, body=linear(scale))
    return msgspec.structs.replace(slot, policy=policy) if policy else slot


def serve(agent, slot):
    """Assign a version and wait until it is the active one."""
    agent.assign(slot)
    until(lambda: agent.transport.slot("digits").get("active") == slot.manifest)


def kill_gateway(agent):
    """Kill the gateway, as a power cut would."""
    os.kill(agent.state().pid, signal.SIGKILL)


def again(slot):
    """The same version in a new assignment."""
    return msgspec.structs.replace(slot, deployment=new_id())


def restarted(agent):
    """Wait until a worker answers again."""
    until(lambda: agent.infer(INPUT)[0] == 200)


def test_what_crashed_three_times_does_not_run_again_before_it_is_assigned_anew(world, agent):
    """Not by agentd's restart, nor the gateway's, nor both; a new assignment proves it anew."""
    slot = publish(world, "1.0.0")
    serve(agent, slot)
    agent.reaches("succeeded")
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL):
        restarted(agent)
        agent.crash(number)
    until(lambda: agent.record().given_up == slot.manifest)
    assert agent.infer(INPUT)[0] == 503
    kill_gateway(agent)
    until(lambda: agent.transport.items("events")[-1]["code"] != "gateway_down")
    agent.stop()
    (agent.run_dir / "deaths.json").unlink()  # a reboot
    agent.start()
    agent.reaches("succeeded")
    until(lambda: agent.infer(INPUT)[0] == 404)
    assert agent.state().workers == []
    serve(agent, again(slot))
    agent.reaches("succeeded")
    assert agent.infer(INPUT)[0] == 200
    assert not agent.record().given_up


def test_a_crash_loop_in_probation_rolls_back_and_is_not_tried_again(world, agent):
    """The standby answers each request; agentd and gateway start again on the good version."""
    good, bad = publish(world, "1.0.0"), publish(world, "2.0.0", 3.0, WATCHED)
    serve(agent, good)
    serve(agent, bad)
    for _ in range(3):
        until(lambda: agent.infer(INPUT)[1].get("model_version") == "2.0.0")
        agent.crash()
        assert agent.infer(INPUT)[0] == 200
    told = agent.reaches("rolled_back")
    assert told["reason"] == "crashes"
    agent.stop()
    agent.start()
    agent.reaches("rolled_back")
    until(lambda: agent.infer(INPUT)[1].get("model_version") == "1.0.0")
    assert agent.record().deployment.id in agent.record().quarantined
    assert {worker.digest for worker in agent.state().workers} == {good.manifest}


def test_crashes_are_counted_across_the_death_of_agentd_and_gateway(world, agent):
    """Two crashes, both processes killed, the third crash within the minute: given up."""
    slot = publish(world, "1.0.0")
    serve(agent, slot)
    agent.reaches("succeeded")
    for _ in range(2):
        restarted(agent)
        agent.crash()
    pid = agent.state().pid
    agent.stop(end_gateway=False)
    os.kill(pid, signal.SIGKILL)
    agent.start()
    restarted(agent)
    agent.crash()
    until(lambda: agent.record().given_up == slot.manifest)


def test_a_gateway_that_gave_up_and_died_is_believed_by_the_next(world, agent):
    """While agentd was away: the new gateway does not load it, agentd writes it down."""
    slot = publish(world, "1.0.0")
    serve(agent, slot)
    agent.reaches("succeeded")
    agent.stop(end_gateway=False)
    for _ in range(3):
        restarted(agent)
        agent.crash()
    until(lambda: agent.infer(INPUT)[1].get("code") == "quarantined")
    kill_gateway(agent)
    agent.start()
    until(lambda: agent.record().given_up == slot.manifest)
    assert agent.state().workers == []


def test_a_standby_that_took_over_while_agentd_was_away_is_the_active_one(world, agent):
    """The gateway fell back by itself; agentd adopts that, and it survives a restart of both."""
    good, bad = publish(world, "1.0.0"), publish(world, "2.0.0", 3.0, WARM)
    serve(agent, good)
    serve(agent, bad)
    agent.reaches("succeeded")
    agent.stop(end_gateway=False)
    for _ in range(3):
        until(lambda: agent.infer(INPUT)[1].get("model_version") == "2.0.0")
        agent.crash()
    until(lambda: agent.infer(INPUT)[1].get("model_version") == "1.0.0")
    agent.start()
    agent.event("fell_back")
    agent.stop()
    agent.start()
    until(lambda: agent.record().active.digest == good.manifest)
    restarted(agent)
    assert agent.infer(INPUT)[1].get("model_version") == "1.0.0"


def test_a_blob_that_changed_under_a_running_worker_is_fetched_again(world, agent):
    """The worker dies, its successor finds the change before it loads; the true bytes serve."""
    slot = publish(world, "1.0.0")
    serve(agent, slot)
    agent.reaches("succeeded")
    (digest,) = agent.record().active.blobs
    blob = agent.config.state / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    subprocess.run(["chmod", "u+w", blob], check=True)
    with blob.open("r+b") as file:
        file.seek(blob.stat().st_size // 2)
        file.write(b"changed")
    agent.crash(signal.SIGBUS)
    agent.event("refetch")
    restarted(agent)
    assert agent.infer(INPUT)[1]["outputs"][0]["data"] == [20.0, 20.0]
    assert agent.record().active.digest == slot.manifest
    assert not agent.record().given_up
