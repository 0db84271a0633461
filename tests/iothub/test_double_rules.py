"""The rules of IoT Hub's MQTT that a well-behaved SDK never meets, met by a client that does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from edgefleet_provisioning.iothub_double import codec, wire
from edgefleet_provisioning.iothub_double.authority import certificates_of
from edgefleet_provisioning.iothub_double.codec import Kind
from edgefleet_provisioning.iothub_double.credentials import make_token
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.events import Event
from edgefleet_provisioning.iothub_double.faults import Faults
from tests.iothub import pki
from tests.iothub.raw import Raw, packet, text

EVENTS = "devices/{}/messages/events/"


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureDouble]:
    """Run a double with one hub."""
    with AzureDouble(tmp_path_factory.mktemp("azure"), websockets=False) as made:
        yield made


@pytest.fixture
def device(double: AzureDouble, request: pytest.FixtureRequest) -> str:
    """Register a device of the test's own name, and return it."""
    name = re.sub(r"[^a-z0-9_]+", "-", request.node.name.lower())
    double.hub().registry.create(name)
    return str(name)


def events(double: AzureDouble, device: str, source: str = "Telemetry") -> list[Event]:
    """Return what the log holds of a device."""
    found = []
    for event in double.hub().log.all():
        said = event.annotations
        if (
            said["iothub-connection-device-id"] == device
            and said["iothub-message-source"] == source
        ):
            found.append(event)
    return found


@pytest.mark.parametrize("case", ["qos 2", "topic", "other device", "twin typo", "too large"])
def test_what_may_not_be_published_ends_the_connection(
    double: AzureDouble, device: str, case: str
) -> None:
    """QoS 2, an unknown topic, another's topic and 256 KiB and more end the connection."""
    with Raw(double) as raw:
        assert raw.connect(device) == 0
        topic = EVENTS.format(device)
        if case == "qos 2":
            raw.publish(topic, b"x", qos=2)
        elif case == "too large":
            with pytest.raises((EOFError, ConnectionError, OSError)):
                raw.publish(topic, b"x" * (256 * 1024 + 1))
                raw.next()
            assert not events(double, device)
            return
        else:
            wrong = {
                "topic": "f1/d1/up/ev", "other device": EVENTS.format("somebody"),
                "twin typo": "$iothub/twin/get/?$rid=1",
            }  # fmt: skip
            raw.publish(wrong[case], b"x")
        assert raw.closed()
    assert not events(double, device)


def test_a_message_of_256_kib_is_taken(double: AzureDouble, device: str) -> None:
    """The largest message is taken whole."""
    with Raw(double) as raw:
        raw.connect(device)
        raw.publish(EVENTS.format(device), b"x" * 256 * 1024)
        assert raw.next().kind is Kind.PUBACK
    assert len(events(double, device)[0].body) == 256 * 1024


def test_an_unknown_filter_is_refused(double: AzureDouble, device: str) -> None:
    """A filter that the hub does not know gets 0x80, beside those that it does."""
    with Raw(double) as raw:
        raw.connect(device)
        codes = raw.subscribe(
            "f1/#", "$iothub/twin/res/#", "#", "devices/other/messages/devicebound/#",
            f"devices/{device}/messages/devicebound/#",
        )  # fmt: skip
        assert codes == [0x80, 1, 0x80, 0x80, 1]


def test_nobody_is_answered_who_has_not_subscribed(double: AzureDouble, device: str) -> None:
    """A twin asked for without a subscription to answers is not sent, then or later."""
    with Raw(double) as raw:
        raw.connect(device)
        raw.publish("$iothub/twin/GET/?$rid=1", b"")
        assert raw.next().kind is Kind.PUBACK
        raw.subscribe("$iothub/twin/res/#")
        raw.publish("$iothub/twin/GET/?$rid=2", b"", qos=0)
        answer = codec.read_publish(raw.next())
        assert answer.topic == "$iothub/twin/res/200/?$rid=2"
        assert json.loads(answer.payload) == {
            "desired": {"$version": 1}, "reported": {"$version": 1}
        }  # fmt: skip


def test_a_bad_patch_is_answered_by_400(double: AzureDouble, device: str) -> None:
    """No JSON, no object, and what no twin may hold get 400; a good one gets its version."""
    with Raw(double) as raw:
        raw.connect(device)
        raw.subscribe("$iothub/twin/res/#")
        said = []
        for body in (b"{", b"[1]", b'{"a.b":1}', b'{"a":{"b":null,"c":1}}'):
            raw.publish("$iothub/twin/PATCH/properties/reported/?$rid=x%20y", body, qos=0)
            said.append(codec.read_publish(raw.next()).topic)
    assert said == ["$iothub/twin/res/400/?$rid=x%20y"] * 3 + [
        "$iothub/twin/res/204/?$rid=x%20y&$version=2"
    ]


def test_retain_becomes_a_property(double: AzureDouble, device: str) -> None:
    """A retained message is a message with the property mqtt-retain; a plus stays a plus."""
    with Raw(double) as raw:
        raw.connect(device)
        raw.publish(EVENTS.format(device) + "a=1+1&b&c=%3D", b"x", retain=True)
        raw.next()
    (event,) = events(double, device)
    assert event.properties == {"a": "1+1", "b": "", "c": "=", "mqtt-retain": "true"}


@pytest.mark.parametrize("clean", [True, False])
def test_a_will_is_a_message(double: AzureDouble, device: str, clean: bool) -> None:
    """The will of a device that breaks off comes as a message; after DISCONNECT none does."""
    with Raw(double) as raw:
        raw.connect(device, will=(EVENTS.format(device) + "kind=gone", b"bye"))
        if clean:
            raw.send(packet(Kind.DISCONNECT, b""))
            assert raw.closed()
    end = time.monotonic() + 15
    while double.hub().sessions.find(device) is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
    while not clean and not events(double, device):
        assert time.monotonic() < end
        time.sleep(0.01)
    found = [(e.body, e.properties) for e in events(double, device)]
    assert found == ([] if clean else [(b"bye", {"kind": "gone", "iothub-MessageType": "Will"})])


def test_silence_ends_a_connection(double: AzureDouble, device: str) -> None:
    """Who says nothing for one and a half keep-alives is gone; who pings stays."""
    with Raw(double) as silent, Raw(double) as lively:
        double.hub().registry.create("lively")
        begun = time.monotonic()
        silent.connect(device, keep_alive=1)
        lively.connect("lively", keep_alive=20)
        while True:
            lively.send(packet(Kind.PINGREQ, b""))
            assert lively.next().kind is Kind.PINGRESP
            if double.hub().sessions.find(device) is None:
                break
            assert time.monotonic() < begun + 15
            time.sleep(0.2)
        assert time.monotonic() - begun >= 1.5
        assert silent.closed()


@pytest.mark.parametrize(
    ("case", "code"),
    [("no version", 4), ("another id", 2), ("no password", 5), ("expired", 5),
     ("other hub", 5), ("other device", 5), ("no token", 5), ("policy", 0), ("service policy", 5)],
)  # fmt: skip
def test_how_a_device_must_introduce_itself(
    double: AzureDouble, device: str, case: str, code: int
) -> None:
    """User name, client id and token belong together and to this hub; a policy may connect any."""
    hub = double.hub()
    where, key = f"{hub.host}/devices/{device}", hub.registry.get(device).primary
    later = int(hub.clock.now()) + 600
    how: dict[str, dict[str, str]] = {
        "no version": {"user": f"{hub.host}/{device}/"},
        "another id": {"client_id": "somebody"},
        "no password": {"password": ""},
        "expired": {"password": make_token(where, key, later - 700)},
        "other hub": {"password": make_token(f"other/devices/{device}", key, later)},
        "other device": {"password": make_token(where[:-1], key, later)},
        "no token": {"password": "secret"},
        "policy": {"password": make_token(hub.host, hub.policies["device"], later, "device")},
        "service policy": {
            "password": make_token(hub.host, hub.policies["service"], later, "service")
        },
    }
    with Raw(double) as raw:
        assert raw.connect(device, **how[case]) == code


def test_too_many_connections_at_a_time_wait(double: AzureDouble, device: str) -> None:
    """Over the rate of new connections the hub is unavailable (3), and then available again."""
    throttles = double.hub().throttles
    amount, _ = throttles.limit("connections")
    throttles.set("connections", 0.5, 3600)
    try:
        with Raw(double) as raw:
            assert raw.connect(device) == 3
    finally:
        throttles.set("connections", amount)
    with Raw(double) as raw:
        assert raw.connect(device) == 0


def test_messages_over_the_rate_are_slowed_down(double: AzureDouble, device: str) -> None:
    """Azure shapes before it refuses: a message over the rate is acknowledged later, not lost."""
    throttles = double.hub().throttles
    amount, _ = throttles.limit("d2c")
    throttles.set("d2c", 1, 0.3)
    try:
        with Raw(double) as raw:
            raw.connect(device)
            begun = time.monotonic()
            for i in range(4):
                raw.publish(EVENTS.format(device), str(i).encode())
            assert [raw.next().kind for _ in range(4)] == [Kind.PUBACK] * 4
            assert time.monotonic() - begun >= 0.8
    finally:
        throttles.set("d2c", amount)
    assert [e.body for e in events(double, device)] == [b"0", b"1", b"2", b"3"]


def test_a_session_outlives_its_connection(double: AzureDouble, device: str) -> None:
    """With clean_session=0 subscriptions stay, and an unacknowledged message comes again."""
    bound = f"devices/{device}/messages/devicebound/#"
    with Raw(double) as raw:
        raw.connect(device)
        assert not raw.present
        raw.subscribe(bound)
        double.hub().send_c2d(device, b"one")
        assert codec.read_publish(raw.next()).payload == b"one"
    with Raw(double) as raw:
        raw.connect(device)
        assert raw.present
        again = codec.read_publish(raw.next())
        assert again.payload == b"one"
        raw.send(packet(Kind.PUBACK, again.number.to_bytes(2, "big")))
        raw.publish(EVENTS.format(device), b"after")
        raw.next()
    assert not double.hub().sessions.pending(device)
    with Raw(double) as raw:
        raw.connect(device, clean=True)
        assert not raw.present


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"\x10\x00", b"\x10\xff\xff\xff\xff\x01", b"\x30\x02\x00\x09",
        packet(Kind.CONNECT, text("MQTT") + b"\x05\x02\x00\x00" + text("v5")),
    ],
    ids=["http", "empty", "endless", "publish", "mqtt 5"],
)  # fmt: skip
def test_nonsense_ends_the_connection(double: AzureDouble, device: str, data: bytes) -> None:
    """Whatever is no CONNECT of MQTT 3.1.1 ends the connection, and nobody else's."""
    with Raw(double) as well, Raw(double) as raw:
        well.connect(device)
        raw.send(data)
        assert raw.closed()
        well.send(packet(Kind.PINGREQ, b""))
        assert well.next().kind is Kind.PINGRESP


def test_a_second_connect_ends_the_connection(double: AzureDouble, device: str) -> None:
    """A client introduces itself once."""
    with Raw(double) as raw:
        raw.connect(device)
        raw.send(packet(Kind.CONNECT, b""))
        assert raw.closed()


def test_a_fault_happens_once_and_where_it_was_asked_for() -> None:
    """A fault may skip some packets, holds for one device alone, and is then used up."""
    faults = Faults()
    done = faults.cut_at("in:ping", "after", skip=1, device="d1")
    assert faults.due("in:ping", "after", "d2") is None
    assert faults.due("in:ping", "before", "d1") is None
    assert faults.due("in:ping", "after", "d1") is None
    assert faults.due("in:ping", "after", "d1") is not None
    assert faults.due("in:ping", "after", "d1") is None
    assert not done.is_set()  # the dialect sets it when it has cut
    with pytest.raises(ValueError, match="in:connect"):
        faults.cut_at("in:nothing")


def test_a_certificate_within_tls_1_3(double: AzureDouble, tmp_path: Path) -> None:
    """Under TLS 1.3, where the SDK does not yet go, certificates are judged in the same way."""
    pair, other = pki.make("modern"), pki.make("modern")
    known = (pair.thumbprint(hashes.SHA256()), "")
    double.hub().registry.create("modern", auth="selfSigned", thumbprints=known)
    for shown, code in ((pair, 0), (other, 5)):
        with Raw(double, shown=shown.files(tmp_path)) as raw:
            assert raw.socket.version() == "TLSv1.3"
            assert raw.connect("modern", password="") == code


def test_certificates_are_found_in_both_versions_of_tls() -> None:
    """The handshake message lists the chain with extensions in TLS 1.3, without in TLS 1.2."""
    one, two = b"\x01" * 5, b"\x02" * 300

    def sized(data: bytes) -> bytes:
        return len(data).to_bytes(3, "big") + data

    old = sized(sized(one) + sized(two))
    new = b"\x00" + sized(sized(one) + b"\x00\x00" + sized(two) + b"\x00\x02ab")
    assert certificates_of(b"\x0b" + sized(old), tls13=False) == [one, two]
    assert certificates_of(b"\x0b" + sized(new), tls13=True) == [one, two]


def test_only_our_path_becomes_a_websocket() -> None:
    """The answer to a key is RFC 6455's own example; other paths are no WebSocket of ours."""
    head = (
        "GET {} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    answer = wire.upgrade(head.format("/$iothub/websocket").encode())
    assert answer is not None
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
    assert wire.upgrade(head.format("/%24iothub/websocket?iothub-no-client-cert=true").encode())
    assert wire.upgrade(head.format("/devices").encode()) is None
