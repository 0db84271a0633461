"""A device is assigned a version that may be run in batches: it proves it, or keeps the old one."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from edgefleet_shared.package import Batching, TensorSpec
from tests.agent.gateways import UnixConnection
from tests.agent.lent_client import Client, request_bytes
from tests.agent.running import WholeAgent
from tests.agent.test_batching import row
from tests.agent.world import World
from tests.batch_models import centred
from tests.models import linear

PATH = "/v2/models/digits/infer"


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running device."""
    agent = WholeAgent(world, inference={"tcp": "127.0.0.1:0"}).start()
    yield agent
    Client.close_all()
    agent.close()


def batched(width):
    """What changes a manifest into one of a model that gives so many columns, run in batches."""

    def change(manifest):
        (variant,) = manifest.variants
        variant = replace(
            variant,
            outputs=[TensorSpec("y", "FP32", [-1, width])],
            batching=Batching(2, 1_000_000),
        )
        return replace(manifest, variants=[variant])

    return change


def statistics(agent):
    """The statistics of what is loaded for the model."""
    with contextlib.closing(UnixConnection(agent.run_dir / "infer.sock")) as connection:
        connection.request("GET", "/v2/models/digits/stats")
        return json.loads(connection.getresponse().read())["model_stats"]


def test_from_the_manifest_to_one_run(world, agent):
    """Two requests become one run; a version whose rows are not independent changes nothing."""
    agent.assign(world.publish("1.0.0", body=linear(2.0), change=batched(2)))
    agent.reaches("succeeded")
    clients = [Client(SimpleNamespace(uds=agent.run_dir / "infer.sock")) for _ in range(2)]
    for number, client in enumerate(clients, 1):
        client.send(request_bytes(row(number), PATH))
    answers = [client.answer()[1] for client in clients]
    assert [answer["outputs"][0]["data"] for answer in answers] == [[8, 8], [16, 16]]
    (told,) = statistics(agent)
    assert (told["version"], told["inference_count"], told["execution_count"]) == ("1.0.0", 2, 1)
    agent.assign(world.publish("2.0.0", body=centred(), change=batched(4)))
    assert agent.reaches("failed")["reason"] == "batch_mismatch"
    assert agent.infer([1.0] * 4)[1]["model_version"] == "1.0.0"
