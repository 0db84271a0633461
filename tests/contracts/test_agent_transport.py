"""What every transport of the agent must do; run over its fake and over real brokers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edgefleet_agent.transports.mqtt import MqttTransport
from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.broker.probe import free_port
from edgefleet_shared import strict_json, topics, twin
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Get, Presence
from tests.agent.world import until
from tests.brokers import KINDS, Client, SecureBroker, make_authority
from tests.fakes.memory_transport import MemoryTransport
from tests.iothub_agent import HubWorld
from tests.transport_caller import Done, Events, sealed

DEVICE = "cam-1"


class FakeWorld:
    """The fake and its inside."""

    def __init__(self) -> None:
        self.transport = MemoryTransport()

    def retain(self, payload: bytes) -> None:
        self.transport.send(payload)

    def newest(self, topic: str) -> bytes | None:
        kind = topics.parse(topic)
        assert kind is not None
        if kind.kind == "get":
            have = self.transport.asked
            return strict_json.encode(Get(1, have[-1])) if have else None
        if kind.kind == "presence":
            return strict_json.encode(Presence(1, bool(self.transport.presence), "boot-1", "9"))
        wanted = self.transport.sealed
        return wanted[-1] if wanted else None

    def down(self) -> None:
        self.transport.disconnect()

    def up(self) -> None:
        self.transport.connect()

    def close(self) -> None:
        pass


class BrokerWorld:
    """A real broker with mutual TLS, and a client with the fleet manager's certificate."""

    def __init__(self, kind: str, folder) -> None:
        self._kind, self._folder = kind, folder
        self.secure = SecureBroker(kind, folder)
        self.secure.start()
        self.pair = self.secure.issue(DEVICE)
        self.transport = self.agent(self.pair)
        self._seen: dict[str, bytes] = {}
        self._watch()

    def agent(self, pair) -> MqttTransport:
        """Return the agent's transport with a key and certificate in one file."""
        return MqttTransport(
            self.secure.broker.url, DEVICE, "boot-1", "9", self.secure.agent_tls(pair),
            backoff_max_s=1.0,
        )  # fmt: skip

    def _watch(self) -> None:
        known = self.secure.credentials
        self._client = Client(known.authorities, self.secure.port, known.manager, "fleet-manager")
        self._client.paho.on_message = lambda _c, _u, m: self._seen.update({m.topic: m.payload})
        self._client.subscribe(topics.all_up())

    def retain(self, payload: bytes) -> None:
        self._client.publish(topics.desired(DEVICE), payload, retain=True)

    def newest(self, topic: str) -> bytes | None:
        return self._seen.get(topic)

    def down(self) -> None:
        self._client.close()
        self.secure.close()

    def up(self) -> None:
        self._seen.clear()
        self.secure = SecureBroker(self._kind, self._folder, port=self.secure.port)
        self.secure.start()
        self._watch()

    def close(self) -> None:
        self._client.close()
        self.secure.close()


class IotHubWorld:
    """A hub on this machine, the unmodified SDK, and the hub's own view of the device."""

    def __init__(self, folder) -> None:
        self.hub = HubWorld(folder)
        self.transport = self.hub.agent()

    def retain(self, payload: bytes) -> None:
        self.hub.assign(payload)

    def newest(self, topic: str) -> bytes | None:
        kind = topics.parse(topic)
        assert kind is not None
        found = [b for p, b in self.hub.messages() if twin.topic_of(DEVICE, p) == topic]
        return self.hub.reported() if kind.kind == "reported" else (found or [None])[-1]

    def down(self) -> None:
        self.hub.double.off_net()

    def up(self) -> None:
        self.hub.double.on_net()

    def close(self) -> None:
        self.hub.close()


def build(kind: str, folder) -> FakeWorld | BrokerWorld | IotHubWorld:
    """Return a world by its name."""
    if kind == "memory":
        return FakeWorld()
    return IotHubWorld(folder) if kind == "iothub" else BrokerWorld(kind, folder)


@pytest.fixture(params=["memory", "iothub", *KINDS])
def world(request, tmp_path) -> Iterator[FakeWorld | BrokerWorld | IotHubWorld]:
    """Each transport with what it connects to."""
    made = build(request.param, tmp_path)
    yield made
    made.transport.stop()
    made.close()


@pytest.fixture
def events(world) -> Events:
    """A connected agent."""
    events = Events()
    world.transport.start(events)
    until(lambda: events.connected == 1, "connected")
    return events


def presence(world) -> Presence:
    """Return what the device last said of its presence."""
    payload = until(lambda: world.newest(topics.presence(DEVICE)), "presence")
    return strict_json.decode(payload, Presence, max_bytes=1000, what="presence")


def test_what_is_published_arrives_and_is_said_to_be_held(world, events):
    """Reported and batches reach the other side as they are, and `done(True)` follows."""
    for topic, publish in (
        (topics.reported(DEVICE), world.transport.publish_reported),
        (
            topics.stream(DEVICE, "events"),
            lambda data, done: world.transport.publish_batch("events", data, done),
        ),
    ):
        done, payload = Done(), sealed("e30=")
        publish(payload, done)
        until(lambda done=done: done.told == [True], "done")
        until(lambda topic=topic, payload=payload: world.newest(topic) == payload, topic)


def test_the_desired_document_comes_at_once_and_when_asked_for(world, events):
    """What is retained while we are connected comes; asking names the newest counter we have."""
    world.retain(b"one")
    until(lambda: events.desired[-1:] == [b"one"], "desired")
    world.transport.request_desired(41)
    payload = until(lambda: world.newest(topics.get(DEVICE)), "get")
    assert strict_json.decode(payload, Get, max_bytes=1000, what="get").have == 41


def test_a_broken_connection_is_told_and_comes_back(world, events):
    """What was not handed over is told as not held, and after a while all is well again."""
    world.down()
    until(lambda: events.disconnected, "disconnected")
    done = Done()
    world.transport.publish_batch("events", sealed("e30="), done)
    until(lambda: done.told == [False], "not held")
    world.up()
    until(lambda: events.connected >= 2, "connected again")
    again = Done()
    world.transport.publish_batch("events", sealed("e30="), again)
    until(lambda: again.told == [True], "held")


def test_with_a_renewed_certificate_it_connects_anew(world, events):
    """The old connection ends, the next one stands at once, and messages flow again."""
    world.transport.renewed()
    until(lambda: events.disconnected and events.connected >= 2, "connected again")
    done = Done()
    world.transport.publish_batch("events", sealed("e30="), done)
    until(lambda: done.told == [True], "held")


def test_presence_is_said_on_connect_and_taken_back_on_stop(world, events):
    """Online with this boot; and offline, said by ourselves, when we leave."""
    online = presence(world)
    assert (online.online, online.boot, online.agent) == (True, "boot-1", "9")
    world.transport.stop()
    until(lambda: not presence(world).online, "offline")


def test_many_messages_at_once_are_each_told_of_once(world, events):
    """Two hundred messages from four threads: each `done` is called exactly once, with True."""
    dones = [Done() for _ in range(200)]

    def publish(part: list[Done]) -> None:
        for done in part:
            world.transport.publish_batch("telemetry", sealed("e30="), done)

    threads = [threading.Thread(target=publish, args=(dones[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: all(done.told for done in dones), "every done")
    assert {tuple(done.told) for done in dones} == {(True,)}


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "mqtt://h:99999", "mqtt://h:x"])
def test_an_address_that_is_none_is_refused(url):
    """Only mqtt:// and mqtts:// with a host and a port that exists."""
    with pytest.raises(InvalidInputError):
        MqttTransport(url, DEVICE, "b", "9")


@pytest.fixture(params=KINDS)
def real(request, tmp_path) -> Iterator[BrokerWorld]:
    """Each real broker."""
    made = BrokerWorld(request.param, tmp_path)
    yield made
    made.transport.stop()
    made.close()


def test_a_certificate_that_is_refused_is_told_and_the_next_one_taken(real, tmp_path):
    """Another authority's opens nothing; a pair half written is told; the right one connects."""
    strange = SecureBroker("amqtt", tmp_path / "strange")
    pair = strange.issue(DEVICE)
    strange.database.close()
    transport, events = real.agent(pair), Events()
    transport.start(events)
    until(lambda: events.refused, "refused")
    assert "our certificate" in events.refused[0]
    pair.write_bytes(pair.read_bytes().partition(b"-----BEGIN CERT")[0])  # as power leaves it
    transport.renewed()
    until(lambda: "cannot be used" in events.refused[-1], "half a pair")
    assert not events.connected
    pair.write_bytes(real.pair.read_bytes())
    transport.renewed()
    until(lambda: events.connected, "connected")
    transport.stop()


def test_a_broker_of_another_authority_is_not_believed(real, tmp_path):
    """It may hold any name; without a certificate of our authorities it learns nothing."""
    make_authority(tmp_path / "strange")
    tls = real.secure.agent_tls(real.pair)._replace(ca=tmp_path / "strange" / "device-ca.crt")
    transport = MqttTransport(real.secure.broker.url, DEVICE, "b", "9", tls, backoff_max_s=0.5)
    events = Events()
    transport.start(events)
    until(lambda: events.refused, "refused")
    assert "certificate verify failed" in events.refused[0]
    transport.stop()


def test_a_second_client_with_our_certificate_does_not_keep_us_out(real):
    """Thrown out, we come back, a little later each time, and are given our document again."""
    events = Events()
    real.transport.start(events)
    until(lambda: events.connected, "connected")
    real.retain(b"document")
    until(lambda: events.desired, "desired")
    for turn in range(2):
        with real.secure.client(real.pair, DEVICE):
            until(lambda turn=turn: len(events.disconnected) > turn, "thrown out")
        until(lambda turn=turn: events.connected > turn + 1, "back")
    until(lambda: len(events.desired) >= 3, "desired again")


def test_a_broker_that_was_never_there_is_tried_again(tmp_path):
    """The agent starts before the broker does; it connects when there is one, TLS or not."""
    port = free_port()
    transport = MqttTransport(f"mqtt://127.0.0.1:{port}", DEVICE, "b", "9", backoff_max_s=0.5)
    events = Events()
    transport.start(events)
    until(lambda: events.disconnected, "no broker")
    broker = EmbeddedBroker("auto", tmp_path, port)
    broker.start()
    try:
        until(lambda: events.connected, "connected")
    finally:
        transport.stop()
        broker.stop()
