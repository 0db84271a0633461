"""A broker that floods the device: its memory stays small, and the next honest document counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet_agent.refusals import PER_PERIOD, PERIOD_S, Refusals
from tests.agent.running import Agent
from tests.agent.world import World, until

MEGABYTE = 1 << 20


@pytest.fixture
def agent():
    """An agent that serves nothing yet."""
    world = World()
    agent = Agent(world).start()
    yield agent
    agent.close()
    world.close()


def memory_kb() -> int:
    """Return this process's resident memory; agentd is a part of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_oversized_documents_are_refused_and_not_kept(agent):
    """Of hundreds of megabytes that wait to be judged only a little is held."""
    until(lambda: agent.transport.presence, "a connection")
    before = memory_kb()
    for index in range(400):
        agent.transport.send(b'{"v":1,"padding":"%d' % index + b"x" * MEGABYTE)
    assert memory_kb() - before < 60_000
    assert agent.event("malformed")["step"] == "receive"
    slot = agent.world.publish("1.0.0")
    agent.assign(slot)
    agent.transport.connect()  # the flood may have crowded it out: it is asked for again
    assert agent.reaches("succeeded")["active"] == slot.manifest
    told = [event for event in agent.transport.items("events") if event["code"] == "malformed"]
    assert len(told) <= PER_PERIOD


def test_refusals_are_told_once_and_not_without_end():
    """The same document again is not told; of many different ones a few, and later more."""
    clock = [0.0]
    refusals = Refusals(lambda: clock[0])
    assert refusals.admit(b"0")
    assert not refusals.admit(b"0")
    assert sum(refusals.admit(b"%d" % index) for index in range(1, 1000)) == PER_PERIOD - 1
    clock[0] = PERIOD_S
    assert refusals.admit(b"later")
