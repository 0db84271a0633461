"""A slot whose model is a container: agentd, gateway and dockerd, from assignment to removal."""

from __future__ import annotations

import msgspec
import pytest

from tests.agent.container_world import RealAgent, boxed
from tests.agent.world import World, until
from tests.dockerd import Image, Registry, server_program
from tests.models import linear

pytestmark = pytest.mark.dockerd


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The server that every image here holds."""
    return server_program(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def registry():
    """Where images are pulled from."""
    one = Registry()
    yield one
    one.close()


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world, dockerd):
    """A running device."""
    agent = RealAgent(world, dockerd)
    agent.start()
    yield agent
    agent.close()


def serves(agent, slot):
    """Assign a version and wait until it is the active one."""
    agent.assign(slot)
    until(lambda: agent.transport.slot("digits").get("active") == slot.manifest)
    agent.reaches("succeeded")


def test_a_container_lives_as_long_as_its_slot_needs_it(world, agent, registry, program):
    """Pulled, proved, served; found again by a new agentd; gone when ONNX takes over."""
    image = registry.put(Image(program, SCALE=2))
    one = boxed(world, "1.0.0", image)
    serves(agent, one)
    assert agent.infer([1, 2, 3, 4])[1]["outputs"][0]["data"] == [20.0, 20.0]
    (container,) = agent.containers()
    agent.stop(end_gateway=False)
    assert agent.infer([1, 2, 3, 4])[0] == 200
    agent.start()
    agent.reaches("succeeded")
    assert [c["Id"] for c in agent.containers()] == [container["Id"]]
    serves(agent, world.publish("2.0.0", body=linear(3.0)))
    assert agent.infer([1, 2, 3, 4])[1]["outputs"][0]["data"] == [30.0, 30.0]
    serves(agent, world.publish("3.0.0", body=linear(4.0)))
    until(lambda: not agent.containers())
    until(lambda: image not in agent.images())


def test_a_container_that_proves_nothing_leaves_nothing(world, agent, registry, program):
    """Wrong answers: refused, the container is gone, and what served goes on."""
    serves(agent, world.publish("1.0.0", body=linear(2.0)))
    image = registry.put(Image(program, SCALE=5))
    agent.assign(boxed(world, "2.0.0", image))
    told = agent.reaches("failed")
    assert told["reason"] == "golden_mismatch"
    assert agent.infer([1, 2, 3, 4])[0] == 200
    assert not agent.containers()
    until(lambda: image not in agent.images())


def test_without_docker_a_container_is_refused_with_a_hint(world, dockerd):
    """`unsupported_runtime`, and what to do; ONNX serves on this device all the same."""
    agent = RealAgent(world, dockerd)
    nowhere = msgspec.structs.replace(agent.config.containers, socket="/nowhere/docker.sock")
    agent.config = msgspec.structs.replace(agent.config, containers=nowhere)
    agent.start()
    try:
        serves(agent, world.publish("1.0.0", body=linear(2.0)))
        agent.assign(boxed(world, "2.0.0", f"models/none@sha256:{'0' * 64}"))
        told = agent.reaches("rejected")
        assert told["reason"] == "unsupported_runtime"
        assert "[containers] socket" in told["detail"]
        assert agent.infer([1, 2, 3, 4])[0] == 200
    finally:
        agent.close()
