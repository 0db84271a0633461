"""agentd around the slots: what it reports, what it keeps while offline, what `status` shows."""

from __future__ import annotations

import json
import socket

import pytest

from edgefleet_agent import compose
from edgefleet_agent.cli import main
from edgefleet_agent.notify import Notifier
from edgefleet_shared import dsse
from edgefleet_shared.errors import TrustError, UnavailableError
from edgefleet_shared.messages import BATCH_TYPE, REPORTED_TYPE
from tests.agent.running import Agent
from tests.agent.world import World, until


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running agent."""
    agent = Agent(world, telemetry={"interval_s": 0.2}).start()
    yield agent
    agent.close()


def serve(agent, world, version="1.0.0"):
    """Bring a version to success."""
    slot = world.publish(version)
    agent.assign(slot)
    until(lambda: agent.transport.slot("digits").get("active") == slot.manifest)
    agent.reaches("succeeded")
    return slot


def test_all_that_goes_up_is_signed_by_the_devices_key(world, agent):
    """Reported documents and batches open with our key and with no other."""
    serve(agent, world)
    until(lambda: agent.transport.items("telemetry"))
    key = agent.identity.signer.public_key
    for sealed in agent.transport.sealed:
        kind = json.loads(sealed)["payloadType"]
        assert kind in {REPORTED_TYPE, BATCH_TYPE}
        dsse.open_sealed(sealed, kind, key)
        with pytest.raises(TrustError):
            dsse.open_sealed(sealed, kind, world.key("director"))


def test_reports_are_numbered_upwards_across_boots(world, agent):
    """`seq` only grows, and `boot` tells the starts apart."""
    serve(agent, world)
    first = [(r["seq"], r["boot"]) for r in agent.transport.reported]
    agent.stop()
    agent.new_gateway()
    agent.start()
    agent.reaches("succeeded")
    second = [(r["seq"], r["boot"]) for r in agent.transport.reported]
    numbers = [seq for seq, _ in first + second]
    assert numbers == sorted(set(numbers))
    assert len({boot for _, boot in first + second}) == 2


def test_nothing_is_lost_while_the_fleet_manager_is_away(world, agent):
    """Events and windows wait on disk and come in order, each once."""
    serve(agent, world)
    agent.transport.disconnect()
    until(lambda: agent.transport.presence is False)
    agent.gateway.answer("digits", 42)
    slot = world.publish("2.0.0")
    agent.transport._events.on_desired(world.assign(agent.identity, slot))
    until(lambda: agent.gateway.routed("digits") == slot.manifest)
    agent.transport.connect()
    until(lambda: agent.transport.slot("digits")["active"] == slot.manifest)
    until(lambda: sum(w["requests"] for w in agent.transport.items("telemetry")) == 42)
    seqs = [seq for batch in agent.transport.batches["events"] for seq in batch["seqs"]]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_fleet_manager_that_takes_nothing_is_tried_again(world, agent):
    """`done(False)` keeps the items; they come once it takes them."""
    agent.transport.holding = False
    agent.assign(world.publish("1.0.0"))
    until(lambda: agent.gateway.routed("digits"))
    assert agent.transport.items("receipts") == []
    agent.transport.holding = True
    until(lambda: agent.transport.items("receipts"), "receipts")


def test_windows_close_at_a_swap(world, agent):
    """No window mixes two digests' time; what each answered is told under its own name."""
    one = serve(agent, world)
    agent.gateway.answer("digits", 7)
    two = serve(agent, world, "2.0.0")
    agent.gateway.answer("digits", 5)

    def answered(slot):
        windows = agent.transport.items("telemetry")
        return sum(w["requests"] for w in windows if w["digest"] == slot.manifest)

    until(lambda: (answered(one), answered(two)) == (7, 5))


def test_lost_floors_are_reported_and_the_model_serves_on(world, agent):
    """Both floor files gone: the report says so and a new assignment is refused."""
    one = serve(agent, world)
    agent.stop()
    for path in (agent.config.state / "trust").glob("floors-*"):
        path.unlink()
    agent.new_gateway()
    agent.transport.desired = None
    agent.start()
    until(lambda: agent.transport.reported)
    assert agent.transport.reported[-1]["agent"]["floor_lost"] is True
    until(lambda: agent.gateway.routed("digits") == one.manifest)
    agent.assign(world.publish("2.0.0"))
    agent.event("floor_lost")
    until(lambda: agent.transport.reported[-1]["refused"] == "floor_lost")
    assert agent.gateway.routed("digits") == one.manifest


def test_status_shows_what_runs(world, agent, capsys):
    """As text for people, as one object for programs; exit 0 while agentd lives."""
    toml = agent.folder / "agent.toml"
    toml.write_text('state_dir = "state"\nrun_dir = "run"\n')
    slot = serve(agent, world)
    until(lambda: json.loads((agent.run_dir / "status.json").read_text())["slots"]
          .get("digits", {}).get("state") == "succeeded")  # fmt: skip
    assert main(["status", "--config", str(toml)]) == 0
    text = capsys.readouterr().out
    assert "digits: serves 1.0.0" in text
    assert "connected, assignment 1, gateway up; mqtt: mqtt://127.0.0.1:1" in text
    assert main(["status", "--json", "--config", str(toml)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["slots"]["digits"]["active"] == slot.manifest
    assert [w["role"] for w in status["workers"]] == ["active"]
    assert (status["transport"], status["transport_url"]) == ("mqtt", "mqtt://127.0.0.1:1")
    agent.stop()
    assert main(["status", "--config", str(toml)]) == 1
    assert "No agent runs" in capsys.readouterr().err


def test_two_agents_cannot_share_a_state_folder(tmp_path):
    """The second is told so and touches nothing."""
    with compose.lock(tmp_path), pytest.raises(UnavailableError) as caught:
        compose.lock(tmp_path)
    assert caught.value.code == "agent_running"


def test_systemd_hears_of_readiness_and_life(tmp_path):
    """Datagrams go to NOTIFY_SOCKET, the watchdog's at half of its time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "60000000"})
        assert notifier.interval_s == 30
        for tell, word in (
            (notifier.ready, b"READY=1"),
            (notifier.alive, b"WATCHDOG=1"),
            (notifier.stopping, b"STOPPING=1"),
        ):
            tell()
            assert sock.recv(100) == word
    Notifier({}).ready()


def test_blobs_that_moved_are_fetched_from_where_they_are_now(world, agent):
    """The same assignment with another address: a fetch under way goes on there."""
    slot = world.publish("1.0.0")
    envelope = world.assignment(agent.identity, slot)
    right, world.server.url = world.server.url, "http://127.0.0.1:1/v1/blobs"
    agent.transport.send(world.desired(envelope))
    agent.event("fetch_failed")
    world.server.url = right
    agent.transport.send(world.desired(envelope))
    agent.reaches("succeeded")
    assert agent.gateway.routed("digits") == slot.manifest
