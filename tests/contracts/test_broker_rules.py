"""One suite of rules for every broker that we can start: who is who, and who may what."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from edgefleet_cloud.broker import embedded
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.broker.probe import Answer, client_context, connect
from edgefleet_cloud.broker.revocations import RevocationLists
from edgefleet_cloud.ports import system_clock
from edgefleet_shared import topics
from edgefleet_shared.identifiers import MANAGER
from tests.brokers import KINDS, Client, SecureBroker, make_authority, until


@pytest.fixture(scope="module", params=KINDS)
def broker(request, tmp_path_factory) -> Iterator[SecureBroker]:
    """One broker a kind; each test has devices of its own."""
    made = SecureBroker(request.param, tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def manager(broker: SecureBroker) -> Iterator[Client]:
    """The second fleet manager, who hears everything of the fleet."""
    with broker.client(broker.sign(f"{MANAGER}-2")) as client:
        client.subscribe("f1/#")
        yield client


def test_a_device_hears_its_own_topics_and_nothing_else(broker, manager):
    """Wildcards, $SYS and shared subscriptions bring it only what is its own."""
    with broker.client(broker.issue("hear-1")) as device:
        for wanted in (
            "#", "+/+/+/#", "f1/+/dn/#", topics.down("hear-2"), topics.all_up(), "$SYS/#",
            "$share/g/#", "$share/g/f1/+/dn/#", topics.down("hear-1"),
        ):  # fmt: skip
            if not device.dropped.is_set():
                device.subscribe(wanted)
        for name in ("hear-2", "hear-1"):
            manager.publish(topics.desired(name), b"document")
        until(lambda: topics.desired("hear-1") in device.topics)
        assert set(device.topics) == {topics.desired("hear-1")}


def test_what_is_retained_for_others_comes_to_nobody_else(broker, manager):
    """Neither on subscribing nor on connecting is a retained message of another device sent."""
    manager.publish(topics.desired("kept-2"), b"secret", retain=True)
    with broker.client(broker.issue("kept-2"), clean=False) as other:
        other.subscribe(topics.down("kept-2"))
        until(lambda: other.got)
        with broker.client(broker.issue("kept-1"), clean=False) as device:
            device.subscribe(topics.down("kept-1"))
            device.subscribe("#")
            manager.publish(topics.desired("kept-1"), b"own")
            until(lambda: (topics.desired("kept-1"), b"own") in device.got)
            assert set(device.topics) == {topics.desired("kept-1")}
    manager.publish(topics.desired("kept-2"), b"", retain=True)


def test_a_device_speaks_on_its_own_topics_alone(broker, manager):
    """What it publishes in another's name, or downwards, reaches nobody."""
    pair = broker.issue("speak-1")
    forged = (
        topics.reported("speak-2"), topics.presence("speak-2"), topics.desired("speak-1"),
        topics.desired("speak-2"), "f1/speak-1", "f1/speak-1x/up/get", "elsewhere",
    )  # fmt: skip
    for topic in forged:
        with broker.client(pair) as device:
            device.publish(topic, retain=True)
    with broker.client(pair) as device:
        device.publish(topics.reported("speak-1"), b"own")
    until(lambda: (topics.reported("speak-1"), b"own") in manager.got)
    assert not set(forged) & set(manager.topics)


def test_a_will_on_the_topic_of_another_is_not_published(broker, manager):
    """Amqtt does not take the connection, mosquitto not the will; its own will is published."""
    pair = broker.issue("will-1")
    with broker.client(pair, will=topics.presence("will-2"), connect=False) as device:
        until(lambda: device.joined.is_set() or device.refused.is_set() or device.dropped.is_set())
        device.vanish()
    with broker.client(pair, will=topics.presence("will-1")) as device:
        device.vanish()
        until(lambda: topics.presence("will-1") in manager.topics)
    assert topics.presence("will-2") not in manager.topics
    with broker.client(broker.issue("will-2")) as victim:
        victim.publish(topics.get("will-2"))
    until(lambda: topics.get("will-2") in manager.topics)
    assert topics.presence("will-2") not in manager.topics


def test_a_client_id_is_the_certificates_name_whatever_it_says(broker):
    """Neither connection nor queue of another can be taken by naming its client id."""
    victim, thief = broker.issue("id-2"), broker.issue("id-1")
    with broker.client(victim, "id-2", clean=False) as device:
        device.subscribe(topics.down("id-2"))
        for clean in (True, False):
            with broker.client(thief, "id-2", clean=clean) as other:
                assert not device.dropped.wait(0.3)
                assert not other.session_present
    with broker.client(thief, "id-2"):
        pass
    with broker.client(victim, "id-2", clean=False) as device:
        assert device.session_present


def test_the_same_device_again_takes_its_own_session_over(broker, manager):
    """The older connection ends, and what was sent meanwhile comes to the newer one."""
    pair = broker.issue("twice-1")
    with broker.client(pair, clean=False) as first:
        first.subscribe(topics.down("twice-1"))
        with broker.client(pair, clean=False) as second:
            assert first.dropped.wait(5)
            assert second.session_present
            manager.publish(topics.desired("twice-1"), b"document")
            until(lambda: (topics.desired("twice-1"), b"document") in second.got)


def test_without_a_certificate_of_ours_nobody_gets_in(broker, tmp_path):
    """No certificate, another authority's, or one that has expired: no connection."""
    make_authority(tmp_path / "strange")
    strange = SecureBroker(broker.broker.kind, tmp_path / "world")
    old = tmp_path / "old.pem"
    then = system_clock() - timedelta(days=3)
    ca = broker.ca()
    write_pair(old, lambda key: ca.sign_client(key, MANAGER, then, timedelta(days=1)))
    for pair in (None, strange.issue("cam-1"), old):
        with broker.client(pair, MANAGER, connect=False) as client:
            assert client.out(), pair
            assert not client.joined.is_set()
    strange.database.close()


@pytest.mark.parametrize(
    "name", ["+", "#", "a/b", "broker-probe", "fleet-manager-3", "Cam", "$SYS"]
)
def test_a_name_that_no_device_can_have_opens_nothing(broker, manager, name):
    """Were such a certificate ever signed, its holder would hear and say nothing."""
    with broker.client(broker.sign(name)) as client:
        for wanted in ("#", "f1/+/dn/#", f"f1/{name.replace('#', '+')}/dn/#"):
            if not client.dropped.is_set():
                client.subscribe(wanted)
        manager.publish(topics.desired("name-1"), b"document")
        manager.publish(topics.desired("name-1"), b"end")
    with broker.client(broker.sign(name)) as client:
        client.publish(topics.reported("name-1"))
    until(lambda: (topics.desired("name-1"), b"end") in manager.got)
    assert client.got == []
    assert topics.reported("name-1") not in manager.topics


def context_for(broker: SecureBroker, pair: Path) -> ssl.SSLContext:
    """Return a client's TLS with a pair."""
    return client_context(broker.ca().pem, pair)


def published(broker: SecureBroker) -> None:
    """Publish the lists and wait until the broker has read them."""
    broker.lists.publish()
    until(lambda: broker.lists.in_force(broker.broker.address))


def test_a_revoked_certificate_is_refused_once_the_list_is_read(broker):
    """Two lists within a second both count; the canary tells when; others are not touched."""
    good, one, two = (broker.issue(name) for name in ("crl-0", "crl-1", "crl-2"))
    address = broker.broker.address
    for name, pair in (("crl-1", one), ("crl-2", two)):
        assert connect(address, context_for(broker, pair), name) is Answer.TAKEN
        broker.revoke(name)
        published(broker)
        assert connect(address, context_for(broker, pair), name) is Answer.REFUSED
    assert connect(address, context_for(broker, good), "crl-0") is Answer.TAKEN


def test_a_resumed_tls_session_does_not_outlive_the_revocation(broker):
    """A ticket of an earlier connection opens nothing once its certificate is revoked."""
    pair = broker.issue("ticket-1")
    address, context = broker.broker.address, context_for(broker, pair)

    def shake(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(address, timeout=5) as link,
            context.wrap_socket(link, server_hostname="127.0.0.1", session=session) as secure,
        ):
            secure.settimeout(0.5)
            try:
                if not secure.recv(1):
                    raise ConnectionResetError
            except TimeoutError:
                return secure.session
            raise AssertionError("a broker does not speak first")

    ticket = shake(None)
    broker.revoke("ticket-1")
    published(broker)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(ticket)


def test_a_revoked_device_is_thrown_out_with_all_that_was_kept_for_it(broker, manager):
    """Its connection ends, its session and queue are gone, its retained messages are empty."""
    pair = broker.issue("out-1")
    transport = broker.manager()
    transport.start(lambda _topic, _payload: None)
    assert transport.wait_connected(10)
    disconnections = broker.disconnections(transport)
    manager.publish(topics.desired("out-1"), b"document", retain=True)
    disconnections._thread.start()
    with broker.client(pair, clean=False, will=topics.presence("out-1")) as device:
        device.subscribe(topics.down("out-1"))
        device.publish(topics.reported("out-1"), b"report", retain=True)
        device.publish(topics.presence("out-1"), b"online", retain=True)
        broker.revoke("out-1")
        began = time.monotonic()
        disconnections.disconnect("out-1")
        assert device.dropped.wait(10)
        print(f"{broker.broker.kind}: thrown out after {time.monotonic() - began:.2f} s")
        until(lambda: not disconnections.pending())
    disconnections._over = True
    transport.stop()
    with broker.client(broker.sign(f"{MANAGER}-2"), "again") as reader:
        reader.subscribe("f1/out-1/#")
        reader.publish("f1/out-1/up/end", b"end")
        until(lambda: "f1/out-1/up/end" in reader.topics)
        assert set(reader.topics) == {"f1/out-1/up/end"}
    with broker.client(broker.issue("out-1"), clean=False) as anew:
        assert not anew.session_present


def test_a_new_server_certificate_is_taken_up_without_a_lost_connection(broker):
    """Whoever is connected stays; whoever connects next sees the new one."""
    device = broker.issue("renew-1")

    def serial() -> str:
        context = context_for(broker, device)
        with (
            socket.create_connection(broker.broker.address, timeout=5) as link,
            context.wrap_socket(link, server_hostname="127.0.0.1") as secure,
        ):
            return str((secure.getpeercert() or {})["serialNumber"])

    before = serial()
    with broker.client(broker.issue("renew-2")) as connected:
        broker.credentials.server.unlink()
        assert broker.credentials.renew()
        broker.broker.reload()
        until(lambda: serial() != before)
        assert not connected.dropped.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_an_expired_list_locks_everybody_out(kind, tmp_path, monkeypatch):
    """The outage that the alarm is for: after the list's end not even a good device gets in."""
    world = SecureBroker(kind, tmp_path)
    world.start()
    try:
        pair = world.issue("cam-1")
        old = RevocationLists(
            world.ca, world.database, world.events, world.lists._places,
            lambda: system_clock() - timedelta(days=8),
        )  # fmt: skip
        world.lists.path.unlink()
        old.publish()
        world.broker.stop()
        again = SecureBroker(kind, tmp_path, port=world.port)
        context = context_for(world, pair)
        monkeypatch.setattr(embedded, "READY_S", 2.0)
        with pytest.raises(Exception, match="does not answer"):
            again.broker.start()
        assert connect(again.broker.address, context, "cam-1") is not Answer.TAKEN
        again.close()
    finally:
        world.close()
