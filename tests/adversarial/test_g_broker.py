"""Rows 54 to 58: what a device, a thief of one, and a hostile broker can do over MQTT.

The rules themselves are in tests/contracts/test_broker_rules.py, over every broker; here real
agents and a real fleet manager live by them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgefleet_agent.identity import load_key
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker.probe import Answer, connect
from edgefleet_shared import dsse, topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import REPORTED_TYPE
from tests.adversarial.broker_fleet import Agent, BrokerFleet
from tests.brokers import KINDS, Client, SecureBroker, until


@pytest.fixture(scope="module", params=KINDS)
def fleet(request) -> Iterator[BrokerFleet]:
    """A fleet manager with one kind of broker."""
    made = BrokerFleet(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def victim(fleet) -> Agent:
    """A device that nobody has broken into."""
    return fleet.agent("cam-1")


@pytest.fixture(scope="module")
def stolen(fleet) -> Agent:
    """A device whose files a thief has."""
    return fleet.agent("cam-2")


def sealed(agent: Agent, seq: int) -> bytes:
    """Return a report that is signed by a device's own key, however it was come by."""
    key = load_key(agent.identity)
    body = {
        "v": 1, "device": agent.name, "seq": seq, "ts": "2026-01-31T12:00:00.000Z", "counter": 0,
        "slots": {}, "agent": {}, "boot": "x",
    }  # fmt: skip
    signer = CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
    return dsse.seal(json.dumps(body).encode(), REPORTED_TYPE, signer)


def test_54_a_stolen_certificate_hears_its_own_device_alone(fleet, victim, stolen):
    """Every wildcard, $SYS and shared subscription, while another device is given its document."""
    stolen.stop()  # it would take its session back
    with fleet.client(stolen.pair) as thief:
        for wanted in ("#", "f1/+/dn/#", "f1/+/up/#", "$SYS/#", "$share/g/#", "f1/cam-1/dn/#"):
            if not thief.dropped.is_set():
                thief.subscribe(wanted)
        thief.subscribe(topics.down("cam-2"))
        fleet.roll_out("cam-1")
        fleet.roll_out("cam-2")
        until(lambda: topics.desired("cam-2") in thief.topics)
        until(victim.hears_its_counter)
        assert {topic.split("/")[1] for topic in thief.topics} == {"cam-2"}
    stolen.start()
    until(stolen.hears_its_counter)


@pytest.mark.parametrize("name", ["+", "#", "a/b", "fleet-manager", "fleet-manager-2", "$SYS"])
def test_54_the_authority_signs_no_such_name(fleet, name):
    """The API refuses the id, and the authority below it refuses the certificate."""
    answer = fleet.cloud.client.post("/v1/devices", json={"id": name})
    assert answer.json()["code"] == "invalid_name"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(InvalidInputError, match="cannot name a device"):
        DeviceCa.load(fleet.keys).sign(key, "demo", name, datetime.now(UTC))


def test_55_what_is_said_in_another_devices_name_reaches_nobody(fleet, victim, stolen):
    """Reports, presence, documents and wills on the topics of another change nothing there."""
    path = f"/v1/devices/{victim.name}"
    before, told = fleet.cloud.client.get(path).json(), len(victim.events("report.refused"))
    counter = victim.status()["counter"]
    for topic in (
        topics.reported("cam-1"), topics.presence("cam-1"), topics.desired("cam-1"),
        topics.stream("cam-1", "events"),
    ):  # fmt: skip
        with fleet.client(stolen.pair) as thief:
            thief.publish(topic, b'{"v":1,"online":false,"boot":"x","agent":"x"}', retain=True)
    with fleet.client(stolen.pair, will=topics.presence("cam-1"), connect=False) as thief:
        until(lambda: thief.joined.is_set() or thief.refused.is_set() or thief.dropped.is_set())
        thief.vanish()
    until(stolen.connected)
    fleet.roll_out("cam-2")
    until(stolen.hears_its_counter)
    after = fleet.cloud.client.get(path).json()
    assert (
        (after["online"], after["state"])
        == (before["online"], before["state"])
        == (True, "enrolled")
    )
    assert len(victim.events("report.refused")) == told
    assert victim.status()["counter"] == counter


def test_55_a_hostile_broker_forges_nothing(fleet, victim, stolen):
    """Reports signed by another device's key and documents signed by nobody are refused."""
    until(victim.hears_its_counter)
    counter = victim.status()["counter"]
    with fleet.hostile() as broker:
        broker.publish(topics.reported("cam-1"), sealed(stolen, 10_000))
        document = json.dumps({"v": 1, "counter": counter + 1, "ts": "", "assignment": ""})
        broker.publish(topics.desired("cam-1"), document.encode())
        until(lambda: victim.events("report.refused"))
        until(lambda: victim.status().get("refused"))
    assert victim.events("report.refused")[-1]["data"]["code"] in {"signature", "wrong_device"}
    assert victim.status()["counter"] == counter
    fleet.roll_out("cam-1")
    until(victim.hears_its_counter)


def test_56_another_certificate_cannot_throw_a_device_out(fleet, victim, stolen):
    """A client that calls itself cam-1 is cam-2 to the broker; cam-1 stays as it is."""
    time.sleep(0.5)
    before = len(victim.events("disconnected"))
    for clean in (True, False):
        with fleet.client(stolen.pair, "cam-1", clean=clean) as thief:
            assert thief.joined.is_set()
    fleet.roll_out("cam-1")
    until(victim.hears_its_counter)
    assert len(victim.events("disconnected")) == before
    assert victim.connected()


def test_56_thrown_out_a_device_comes_back_and_misses_nothing(fleet, stolen):
    """Its own certificate in other hands ends its connection; what was assigned meanwhile comes."""
    until(stolen.connected)
    before = len(stolen.events("disconnected"))
    with fleet.client(stolen.pair) as thief:
        fleet.roll_out("cam-2")
        assert thief.joined.is_set()
    until(lambda: len(stolen.events("disconnected")) > before)
    until(stolen.hears_its_counter, 30)


def test_57_of_old_doubled_and_reordered_documents_the_newest_counts_once(fleet, victim):
    """A hostile broker keeps the oldest for the device and sends 5, 3, 4, 5 when it is there."""
    until(victim.hears_its_counter)
    topic, log = topics.desired("cam-1"), victim.folder / "log"
    victim.stop()
    with fleet.hostile() as broker:
        for _ in range(3):
            fleet.roll_out("cam-1")
        until(lambda: _document(broker, topic, fleet.counter("cam-1")))
        time.sleep(2.0)  # nothing more is decided: the controller has looked again
        fifth = fleet.counter("cam-1")
        third, fourth = (number for number in (fifth - 2, fifth - 1))
        documents = {n: _document(broker, topic, n) for n in (third, fourth, fifth)}
        assert all(documents.values())
        broker.publish(topic, documents[third], retain=True)
        begun = len(log.read_text())
        victim.start()
        for number in (fifth, third, fourth, fifth, fifth):
            broker.publish(topic, documents[number])
        until(lambda: victim.status().get("counter") == fifth)
        until(lambda: any(word in log.read_text()[begun:] for word in REFUSED))
        time.sleep(1.0)
        assert victim.status()["counter"] == fifth
    said = log.read_text()[begun:]
    assert said.count(f"To run digits 1.0.{fleet.published} is accepted") == 1


REFUSED = ("was accepted.", "does not verify")  # an older counter, an older catalog


def _document(broker: Client, topic: str, counter: int) -> bytes:
    found = [body for where, body in broker.got if where == topic and body]
    return next((body for body in found if json.loads(body)["counter"] == counter), b"")


def test_58_a_revoked_device_is_out_and_stays_out(fleet, stolen):
    """Dropped at once, refused from then on, nothing kept for it, its reports worth nothing."""
    until(stolen.connected)
    pair = stolen.pair
    began = time.monotonic()
    answer = fleet.cloud.client.post("/v1/devices/cam-2/revoke", json={})
    assert answer.status_code == 200, answer.text
    until(lambda: not stolen.connected(), 60)
    dropped = time.monotonic() - began
    until(lambda: stolen.events("cut_off"), 60)
    print(f"agent out after {dropped:.2f} s, all cleared after {time.monotonic() - began:.2f} s")
    assert dropped < 60
    assert connect(fleet.address, fleet.context(pair), "cam-2") is Answer.REFUSED
    log = stolen.folder / "log"
    until(lambda: "our certificate" in log.read_text(), 30)
    assert not stolen.connected()
    with fleet.hostile() as broker:
        before = len(stolen.events("report.refused"))
        for seq in range(20_000, 20_030):
            broker.publish(topics.reported("cam-2"), sealed(stolen, seq))
        until(lambda: stolen.events("report.refused"))
        told = stolen.events("report.refused")
        assert told[-1]["data"]["code"] == "unknown_device"
        assert len(told) - before <= 1  # a flood of them fills no disk
        broker.publish("f1/cam-2/up/end", b"x")
        until(lambda: "f1/cam-2/up/end" in broker.topics)
    with fleet.hostile() as reader:
        reader.publish("f1/cam-2/up/end", b"x")
        until(lambda: "f1/cam-2/up/end" in reader.topics)
        assert [t for t in reader.topics if t.startswith("f1/cam-2/")] == ["f1/cam-2/up/end"]
    stolen.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_58_a_fleet_manager_that_died_in_between_finishes(kind, tmp_path):
    """The revocation is on disk, nobody was told: the next start throws the device out."""
    world = SecureBroker(kind, tmp_path)
    world.start()
    transport = world.manager()
    transport.start(lambda _topic, _payload: None)
    assert transport.wait_connected(10)
    try:
        with world.client(world.issue("cam-1"), clean=False) as device:
            world.revoke("cam-1")
            disconnections = world.disconnections(transport)
            assert list(disconnections.pending()) == ["cam-1"]
            disconnections._wake.set()
            disconnections._thread.start()
            assert device.dropped.wait(20)
            until(lambda: not disconnections.pending())
            disconnections._over = True
    finally:
        transport.stop()
        world.close()


def test_58_the_alarm_comes_before_the_lock_out(tmp_path):
    """Two days before the lists end, devices still get in, and an error says what is wrong."""
    offset = timedelta()
    world = SecureBroker(
        "mosquitto" if KINDS[-1].values[0] == "mosquitto" else "amqtt",
        tmp_path,
        lambda: datetime.now(UTC) + offset,
    )
    world.credentials.renew()
    world.lists.publish()
    key = world.keys / "device-ca.pem"
    kept = key.read_bytes()
    key.unlink()

    def alarms() -> list[str]:
        with world.database.read() as session:
            rows = session.connection().exec_driver_sql("SELECT type, data FROM events").all()
        return [data for kind, data in rows if kind == "authority.crl_expiring"]

    for hours, told in ((24, 0), (119, 0), (121, 1), (122, 1), (128, 2)):
        offset = timedelta(hours=hours)
        world.lists.keep()
        assert len(alarms()) == told, hours
    assert "error" in alarms()[0]
    end = world.lists.until()
    assert end is not None
    assert end > world.clock() + timedelta(hours=39)
    key.write_bytes(kept)
    world.lists.keep()
    assert (world.lists.until() or end) > end
    world.close()


def test_58_what_is_published_has_never_expired(tmp_path):
    """After weeks without power the first list that is written holds seven days from then."""
    offset = timedelta()
    world = SecureBroker("amqtt", tmp_path, lambda: datetime.now(UTC) + offset)
    world.credentials.renew()
    for days in (0, 0.5, 1, 30, 29.999):
        offset = timedelta(days=days)
        world.lists.keep()
        left = (world.lists.until() or world.clock()) - world.clock()
        assert timedelta(days=5, hours=23) < left <= timedelta(days=7, minutes=10), days
    world.close()
    assert Path(world.lists.path).exists()
