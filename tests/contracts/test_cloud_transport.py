"""One suite for every transport of the fleet manager: memory, amqtt, mosquitto and IoT Hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from edgefleet_cloud.broker.embedded import EmbeddedBroker
from edgefleet_cloud.ports import Transport
from edgefleet_cloud.transports.mqtt import MqttSettings, MqttTransport
from edgefleet_shared import topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import MANAGER
from tests.brokers import KINDS, SecureBroker, until
from tests.fakes.cloud_transport import MemoryBroker, MemoryTransport
from tests.iothub.cloud_world import CloudWorld


class World(Protocol):
    """A broker with one device on it."""

    def transport(self) -> Transport: ...
    def device_sends(self, topic: str, payload: bytes) -> None: ...
    def newest(self, topic: str) -> bytes | None: ...
    def down(self) -> None: ...
    def back_up(self) -> None: ...
    def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def transport(self) -> Transport:
        return MemoryTransport(self.broker)

    def device_sends(self, topic: str, payload: bytes) -> None:
        self.broker.device_sends(topic, payload)

    def newest(self, topic: str) -> bytes | None:
        return self.broker.retained.get(topic)

    def down(self) -> None:
        self.broker.set_up(False)

    def back_up(self) -> None:
        self.broker.set_up(True)

    def close(self) -> None:
        return


class RealWorld:
    """An embedded broker with mutual TLS, and paho as the device."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._folder, self._kind = folder, kind
        self._broker = SecureBroker(kind, folder)
        self._broker.start()
        self._device = self._broker.issue("cam-1")
        self._reader = self._broker.sign(f"{MANAGER}-2")

    def transport(self) -> Transport:
        return self._broker.manager()

    def device_sends(self, topic: str, payload: bytes) -> None:
        with self._broker.client(self._pair(topic)) as client:
            client.publish(topic, payload)

    def _pair(self, topic: str) -> Path:
        parsed = topics.parse(topic)
        assert parsed
        return self._device if parsed.device == "cam-1" else self._broker.sign(parsed.device)

    def newest(self, topic: str) -> bytes | None:
        with self._broker.client(self._reader) as client:
            client.subscribe(topic)
            deadline = time.monotonic() + 1
            while not client.got and time.monotonic() < deadline:
                time.sleep(0.01)
            return client.got[-1][1] if client.got else None

    def down(self) -> None:
        self._broker.close()

    def back_up(self) -> None:
        self._broker = SecureBroker(self._kind, self._folder, port=self._broker.port)
        self._broker.start()

    def close(self) -> None:
        self._broker.close()


@pytest.fixture(params=["memory", *KINDS, "iothub"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return each world in turn."""
    made: World
    if request.param == "memory":
        made = MemoryWorld()
    elif request.param == "iothub":
        made = CloudWorld(tmp_path / "double")
    else:
        made = RealWorld(request.param, tmp_path)
    yield made
    made.close()


class Inbox:
    """A handler that keeps what it got, and fails the first `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.calls = 0
        self._failures = failures

    def __call__(self, topic: str, payload: bytes) -> None:
        self.calls += 1
        if self.calls <= self._failures:
            raise RuntimeError("the disk is gone")
        self.got.append((topic, payload))


def test_a_device_reaches_the_handler_in_order(world: World) -> None:
    """Messages of a device arrive once each and in the order they were sent."""
    transport, inbox = world.transport(), Inbox()
    transport.start(inbox)
    until(lambda: transport.connected)
    sent = [(topics.reported("cam-1"), str(n).encode()) for n in range(5)]
    for message in sent:
        world.device_sends(*message)
    until(lambda: len(inbox.got) >= 5)
    transport.stop()
    assert inbox.got == sent


def test_a_message_whose_handler_dies_is_delivered_again(world: World) -> None:
    """Without a commit there is no acknowledgement, so the message comes back."""
    transport, inbox = world.transport(), Inbox(failures=2)
    transport.start(inbox)
    until(lambda: transport.connected)
    world.device_sends(topics.reported("cam-1"), b"one")
    until(lambda: inbox.got)
    transport.stop()
    assert inbox.got[0] == (topics.reported("cam-1"), b"one")
    assert inbox.calls >= 3


def test_a_message_that_always_breaks_its_handler_does_not_stop_the_others(world: World) -> None:
    """A poisonous message is given up after a few tries."""
    transport, good = world.transport(), []

    def handler(topic: str, payload: bytes) -> None:
        if payload == b"poison":
            raise ValueError(payload)
        good.append((topic, payload))

    transport.start(handler)
    until(lambda: transport.connected)
    world.device_sends(topics.reported("cam-1"), b"poison")
    world.device_sends(topics.reported("cam-2"), b"fine")
    until(lambda: (topics.reported("cam-2"), b"fine") in good, 40)
    transport.stop()


def test_what_was_not_acknowledged_goes_to_the_next_process(world: World) -> None:
    """A fleet manager that dies inside a handler leaves the message to the one after it."""
    first, entered, leave = world.transport(), threading.Event(), threading.Event()

    def hangs(_topic: str, _payload: bytes) -> None:
        entered.set()
        leave.wait(20)
        raise RuntimeError("killed before the commit")

    first.start(hangs)
    until(lambda: first.connected)
    world.device_sends(topics.reported("cam-1"), b"one")
    assert entered.wait(10)
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    leave.set()
    stopping.join(20)
    second, inbox = world.transport(), Inbox()
    second.start(inbox)
    until(lambda: inbox.got)
    second.stop()
    assert inbox.got[0] == (topics.reported("cam-1"), b"one")


def test_a_desired_document_is_retained_and_the_newest_wins(world: World) -> None:
    """A device that connects later finds the newest document."""
    transport = world.transport()
    transport.start(Inbox())
    topic = topics.desired("cam-1")
    for body in (b"1", b"2", b"3"):
        last = transport.publish(topic, body, retain=True)
    last.result(timeout=15)
    until(lambda: world.newest(topic) == b"3")
    transport.stop()


def test_it_comes_back_after_the_broker_restarts(world: World) -> None:
    """What was published while the broker was away is sent, and messages flow again."""
    transport, inbox = world.transport(), Inbox()
    transport.start(inbox)
    until(lambda: transport.connected)
    world.down()
    until(lambda: not transport.connected)
    waiting = transport.publish(topics.desired("cam-1"), b"later", retain=True)
    assert not waiting.done()
    assert transport.pending == 1
    world.back_up()
    waiting.result(timeout=30)
    until(lambda: transport.pending == 0)
    until(lambda: world.newest(topics.desired("cam-1")) == b"later")
    until(lambda: transport.connected)
    world.device_sends(topics.reported("cam-1"), b"again")
    until(lambda: (topics.reported("cam-1"), b"again") in inbox.got)
    transport.stop()


@pytest.mark.parametrize("url", ["http://broker:1883", "broker:1883", "mqtt://"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    """The message says what a broker's URL looks like."""
    with pytest.raises(InvalidInputError, match="mqtt://host:1883"):
        MqttTransport(MqttSettings(url))


def test_a_missing_tls_file_is_named() -> None:
    """A path that does not exist is refused before any connection."""
    with pytest.raises(InvalidInputError, match=r"/nowhere/ca\.crt"):
        MqttTransport(MqttSettings("mqtts://broker", ca="/nowhere/ca.crt"))


def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(tmp_path: Path) -> None:
    """An MQTT 5 CONNECT stays unanswered by amqtt; the next attempt is made in 3.1.1."""
    broker = EmbeddedBroker("amqtt", tmp_path)
    broker.start()
    transport = MqttTransport(MqttSettings(broker.url))
    transport.start(Inbox())
    assert transport.wait_connected(20)
    transport.stop()
    broker.stop()
