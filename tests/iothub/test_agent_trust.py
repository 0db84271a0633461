"""Who the agent says it is to a hub and whom it believes: certificates, keys, tokens, ways."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefleet_agent.transports.iothub import transport as transport_module
from edgefleet_provisioning.iothub_double.addresses import loopback
from edgefleet_shared import twin
from tests.agent.world import until
from tests.brokers import make_authority
from tests.iothub.socks import SocksServer
from tests.iothub_agent import DEVICE, HubWorld
from tests.transport_caller import Done, Events, Sender, sealed

# The SDK leaves sockets of paho 1.6.1 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[HubWorld]:
    """A hub with one device, which shows a certificate."""
    made = HubWorld(tmp_path)
    yield made
    made.close()


@pytest.fixture
def agents() -> Iterator[list[Any]]:
    """Transports that are stopped at the end."""
    made: list[Any] = []
    yield made
    for transport in made:
        transport.stop()


def connect(agents: list[Any], transport: Any) -> Events:
    """Start a transport and wait until it is connected."""
    agents.append(transport)
    events = Events()
    transport.start(events)
    until(lambda: events.connected, f"connected; it was told {events.disconnected}")
    return events


def flows(world: HubWorld, transport: Any, text: str = "e30=") -> None:
    """Assert that messages go up."""
    done = Done()
    transport.publish_batch("events", sealed(text), done)
    until(lambda: done.told == [True], "held")
    assert sealed(text) in world.bodies("ev")


def key_file(world: HubWorld, text: str) -> str:
    """Write a file with a key."""
    path = world.folder / "key.txt"
    path.write_text(text)
    return str(path)


def by_key(world: HubWorld, module: str = "", **options: Any) -> Any:
    """Return an agent with a symmetric key, which the hub knows from now on."""
    key = base64.b64encode(b"k" * 32).decode()
    if module:
        world.hub.registry.create(DEVICE, module, primary=key)
    else:
        world.hub.registry.delete(DEVICE)
        world.hub.registry.create(DEVICE, primary=key)
    file = key_file(world, world.hub.device_string(DEVICE, module))
    return world.agent(auth="sas", key_file=file, module=module, **options)


def test_a_certificate_that_is_refused_is_told_and_the_next_one_taken(world, agents):
    """Another authority's opens nothing; a pair half written is told; the right one connects."""
    strange = world.folder / "strange"
    make_authority(strange)
    pair = world.issue(strange)
    transport, events = world.agent(pair), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.refused, "refused")
    assert "our certificate" in events.refused[0]
    pair.write_bytes(pair.read_bytes().partition(b"-----BEGIN CERT")[0])  # as power leaves it
    transport.renewed()
    until(lambda: "cannot be used" in events.refused[-1], "half a pair")
    assert not events.connected
    pair.write_bytes(world.pair.read_bytes())
    transport.renewed()
    until(lambda: events.connected, "connected")


def test_a_hub_of_another_authority_is_not_believed(world, agents):
    """It may hold any name; without a certificate of our authorities it learns nothing."""
    make_authority(world.folder / "strange")
    transport, events = world.agent(ca=world.folder / "strange" / "device-ca.crt"), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.refused, "refused")
    assert "certificate verify failed" in events.refused[0].lower()
    assert not events.connected


def test_a_second_client_with_our_id_does_not_keep_us_out(world, agents):
    """Thrown out, we come back, a little later each time, and are given our document again."""
    transport = world.agent()
    events = connect(agents, transport)
    world.assign(b"document")
    until(lambda: events.desired, "desired")
    for turn in range(2):
        other = world.agent()
        connect(agents, other)
        until(lambda turn=turn: len(events.disconnected) > turn, "thrown out")
        other.stop()
        until(lambda turn=turn: events.connected > turn + 1, "back")
    until(lambda: len(events.desired) >= 3, "desired again")


def test_a_hub_that_was_never_there_is_tried_again(world, agents):
    """The agent starts before the hub can be reached; it connects when there is one."""
    world.double.off_net()
    transport, events = world.agent(), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.disconnected, "no hub")
    assert not events.refused
    world.double.on_net()
    until(lambda: events.connected, "connected")


def test_a_disabled_device_is_told_so_and_comes_back_when_it_is_enabled(world, agents):
    """Whom the registry disables is refused, for as long as it is."""
    transport = world.agent()
    events = connect(agents, transport)
    world.hub.registry.update(DEVICE, status="disabled")
    world.double.cut(DEVICE)
    until(lambda: events.refused, "refused")
    world.hub.registry.update(DEVICE, status="enabled")
    until(lambda: events.connected > 1, "connected again")


def test_a_symmetric_key_and_a_connection_string_open_the_hub(world, agents):
    """The string's own key, or the bare one; a wrong one is told as refused."""
    flows(world, by_key_connected(world, agents))
    bare = key_file(world, base64.b64encode(b"k" * 32).decode())
    second = world.agent(auth="sas", key_file=bare)
    connect(agents, second)
    flows(world, second, "MQ==")
    wrong, events = world.agent(auth="sas", key_file=key_file(world, "AAAA")), Events()
    agents.append(wrong)
    wrong.start(events)
    until(lambda: events.refused, "refused")


def by_key_connected(world: HubWorld, agents: list[Any]) -> Any:
    """Return a connected agent with a symmetric key."""
    transport = by_key(world)
    connect(agents, transport)
    return transport


@pytest.mark.parametrize("text", ["", "no base64!", "HostName=h;DeviceId=d;SharedAccessKey="])
def test_a_file_without_a_key_is_said(world, agents, text):
    """The agent does not start to guess; it says which file it is."""
    transport, events = world.agent(auth="sas", key_file=key_file(world, text)), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.refused, "refused")
    assert "key.txt holds no symmetric key" in events.refused[0]


def test_renewing_the_token_loses_nothing_and_disturbs_nobody(world, agents):
    """The SDK leaves and comes back each second; messages, reports and documents all arrive.

    Nobody is told of it: it is no broken connection.
    """
    transport = by_key(world, token_ttl_s=121)
    events = connect(agents, transport)
    batches = Sender(lambda data, done: transport.publish_batch("events", data, done))
    reports = Sender(transport.publish_reported, newest=True)
    sessions: list[Any] = []
    turn = 0
    while len(sessions) < 4:
        turn += 1
        assert turn < 1500, "the token is not renewed"
        batches.send(sealed(f"batch-{turn}"))
        reports.send(sealed(f"report-{turn}"))
        world.assign(f"document-{turn}".encode())
        if (session := world.hub.sessions.find(DEVICE)) and session not in sessions:
            sessions.append(session)
        time.sleep(0.02)
    until(lambda: events.desired[-1:] == [f"document-{turn}".encode()], "the last document")
    until(batches.again, "batches")
    until(reports.again, "reports")
    assert set(batches.told + reports.told) == {1}
    assert {sealed(f"batch-{n}") for n in range(1, turn + 1)} <= set(world.bodies("ev"))
    assert world.reported() == sealed(f"report-{turn}")
    assert (events.connected, events.disconnected) == (1, [])


def test_a_token_that_has_expired_costs_a_connection_and_nothing_else(world, agents):
    """The hub ends it when its own clock says so; with a new token all goes on."""
    transport = by_key(world)
    events = connect(agents, transport)
    world.double.clock.advance(3601)
    until(lambda: events.disconnected, "ended by the hub")
    world.double.clock.advance(-3601)
    until(lambda: events.connected > 1, "connected again")
    flows(world, transport)


@pytest.mark.parametrize("skew", [600, -600])
@pytest.mark.parametrize("auth", ["x509", "sas"])
def test_ten_minutes_between_the_clocks_matter_to_nobody(world, agents, skew, auth):
    """Fast or slow: the device gets in, hears and is heard."""
    world.double.clock.advance(skew)
    transport = world.agent() if auth == "x509" else by_key(world)
    events = connect(agents, transport)
    flows(world, transport)
    world.assign(b"document")
    until(lambda: events.desired, "desired")
    assert not events.refused


@pytest.mark.parametrize("auth", ["x509", "sas"])
def test_a_module_identity_has_a_twin_and_messages_of_its_own(world, agents, auth):
    """What lies in the module's twin arrives, the device's own stays untouched."""
    if auth == "sas":
        transport = by_key(world, module="edgefleet")
    else:
        world.hub.registry.create(DEVICE, "edgefleet", auth="certificateAuthority")
        pair = world.issue(world.authority, f"{DEVICE}/edgefleet")
        transport = world.agent(pair, module="edgefleet")
    events = connect(agents, transport)
    patch = {"properties": {"desired": twin.document_patch(b"document")}}
    world.hub.patch_twin(DEVICE, "edgefleet", patch)
    until(lambda: events.desired == [b"document"], "desired")
    done = Done()
    transport.publish_reported(sealed("e30="), done)
    until(lambda: done.told == [True], "reported")
    shown = world.hub.twin(DEVICE, "edgefleet")["properties"]["reported"]
    assert twin.read_report(shown).payload == sealed("e30=")
    assert world.reported() is None


def test_a_hub_behind_a_gateway_is_reached_by_its_own_name(tmp_path, agents):
    """The gateway is connected to, the hub is spoken to."""
    world = HubWorld(tmp_path, ("fleet-b.azure-devices.test",))
    try:
        transport = world.agent()
        connect(agents, transport)
        flows(world, transport)
    finally:
        for one in agents:
            one.stop()
        world.close()


def test_a_proxy_is_gone_through(world, agents):
    """With SOCKS5 the hub is reached through it, and not without it."""
    with SocksServer() as proxy:
        transport = world.agent(proxy=f"socks5://127.0.0.1:{proxy.port}")
        connect(agents, transport)
        flows(world, transport)
        assert proxy.asked == [(world.hub.host, 8883)]
        transport.stop()
    transport, events = world.agent(proxy=f"socks5://127.0.0.1:{proxy.port}"), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.disconnected, "no proxy")
    assert not events.connected


@pytest.mark.skipif(os.geteuid() != 0, reason="port 443 takes root")
def test_websockets_carry_the_same(tmp_path, agents):
    """Port 443 instead of 8883; everything else is as it was."""
    world = HubWorld(tmp_path, websockets=True)
    try:
        transport = world.agent(websockets=True)
        events = connect(agents, transport)
        flows(world, transport)
        world.assign(b"document")
        until(lambda: events.desired == [b"document"], "desired")
    finally:
        for one in agents:
            one.stop()
        world.close()


def test_stopping_ends_an_attempt_that_is_under_way(world, agents, monkeypatch):
    """Whoever stops while nobody answers does not wait for an answer."""
    monkeypatch.setattr(transport_module, "END_S", 60.0)
    address = loopback()
    transport, events = world.agent(url=f"iothub://{address}"), Events()
    agents.append(transport)
    transport.start(events)
    until(lambda: events.disconnected, "nobody there")
    transport.stop()
    assert not transport._thread.is_alive()
    done = Done()
    transport.publish_batch("events", sealed("e30="), done)
    assert done.told == [False], "after the end everything is told at once"
