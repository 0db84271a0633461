"""What a hub's events say in our words; the double writes them as Microsoft spells them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet_cloud.iothub import translate
from edgefleet_cloud.iothub.translate import Change, Connection, Event, Lifecycle, Message
from edgefleet_provisioning.iothub_double.state import Azure, Hub
from edgefleet_shared import twin

SEALED = b'{"payload":"' + b"r" * 9000 + b'"}'


@pytest.fixture
def hub() -> Hub:
    """Return a hub that knows `cam-1`, with a module, and routes every kind of event."""
    made = Azure().add("fleet-a.azure-devices.test")
    made.notices.routes.add("deviceLifecycleEvents")
    made.registry.create("cam-1")
    made.registry.create("cam-1", "edgefleet")
    return made


def words(hub: Hub, module: str = "") -> list[Any]:
    """Return what the hub's whole log says, as it comes through AMQP: text as bytes."""
    return [
        translate.read(
            Event(
                translate.plain({k.encode(): _bytes(v) for k, v in event.annotations.items()}),
                translate.plain({k.encode(): v.encode() for k, v in event.properties.items()}),
                event.body,
            ),
            module,
        )
        for event in hub.log.all()
    ]


def _bytes(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def said(hub: Hub, module: str = "") -> list[Any]:
    """Return the words that are of use, without the registry's."""
    return [
        word for word in words(hub, module) if word is not None and not isinstance(word, Lifecycle)
    ]


@pytest.mark.parametrize(
    ("properties", "topic"),
    [
        (twin.message_properties("presence"), "f1/cam-1/up/presence"),
        (twin.message_properties("reported"), "f1/cam-1/up/reported"),
        (twin.message_properties("ev", "telemetry"), "f1/cam-1/up/ev/telemetry"),
    ],
)
def test_a_message_becomes_its_topic(hub, properties, topic):
    """A device-to-cloud message of ours is what it would be on MQTT, body untouched."""
    hub.send_event("cam-1", "", b"\x00body", properties)
    assert said(hub) == [Message("cam-1", topic, b"\x00body", None)]


def test_a_get_says_what_its_device_sees(hub):
    """A `get` brings the digest of the document that the device sees; '' if it says none."""
    hub.send_event("cam-1", "", b"{}", twin.message_properties("get", seen="ab" * 32))
    hub.send_event("cam-1", "", b"{}", twin.message_properties("get"))
    assert [word.seen for word in said(hub)] == ["ab" * 32, ""]


@pytest.mark.parametrize("properties", [{}, {"kind": "other"}, {"kind": "ev"}, {"kind": "ev/x"}])
def test_what_is_not_ours_is_left_alone(hub, properties):
    """Messages of other applications on the same device mean nothing to us."""
    hub.send_event("cam-1", "", b"hello", properties)
    assert said(hub) == []


def test_a_report_in_a_twin_is_found_whole(hub):
    """A patch of reported properties gives the sealed report back, byte for byte."""
    hub.report("cam-1", "", twin.report_patch(SEALED))
    (word,) = said(hub)
    assert word == Change("cam-1", "", word.report, partial=False)
    assert word.report.payload == SEALED


def test_half_a_report_asks_for_the_twin(hub):
    """A patch that holds a part of the report only is told as partial."""
    hub.report("cam-1", "", twin.report_patch(SEALED))
    hub.report("cam-1", "", {"edgefleet": {"report": {"1": "other"}}})
    assert said(hub)[-1] == Change("cam-1", "", None, partial=True)


def test_a_change_beside_the_report_counts_and_brings_nothing(hub):
    """A patch of our section without a report costs a twin update and needs no GET."""
    hub.report("cam-1", "", {"edgefleet": {"counter": 7}})
    assert said(hub) == [Change("cam-1", "", None, partial=False)]


def test_desired_properties_are_our_own_echo(hub):
    """What we write into a twin comes back as an event and says nothing."""
    hub.patch_twin("cam-1", "", {"properties": {"desired": twin.document_patch(SEALED)}})
    hub.patch_twin("cam-1", "", {"tags": {"site": "berlin"}}, replace=True)
    assert said(hub) == []


def test_the_report_of_a_whole_twin(hub):
    """The registry's view of a twin gives the report, or None where there is none."""
    assert translate.report_of(hub.twin("cam-1")) is None
    hub.report("cam-1", "", twin.report_patch(SEALED))
    found = translate.report_of(hub.twin("cam-1"))
    assert found is not None
    assert found.payload == SEALED


def test_one_module_speaks_for_its_device(hub):
    """A module's messages and reports count if it is the configured one, and no other's."""
    hub.send_event("cam-1", "edgefleet", b"x", twin.message_properties("presence"))
    hub.report("cam-1", "edgefleet", twin.report_patch(SEALED))
    assert said(hub) == []
    assert said(hub, "other") == []
    message, change = said(hub, "edgefleet")
    assert message.topic == "f1/cam-1/up/presence"
    assert (change.device, change.module) == ("cam-1", "edgefleet")


def test_coming_and_going_is_ordered(hub):
    """Of two words on a connection the later has the greater order, as text."""
    hub.notices.connection("cam-1", "", connected=True)
    hub.notices.connection("cam-1", "", connected=False)
    hub.notices.connection("cam-1", "edgefleet", connected=False)
    came, went = said(hub)
    assert (came.online, went.online) == (True, False)
    assert came.order < went.order
    assert len(said(hub, "edgefleet")) == 3


def test_an_order_of_another_length_compares_as_a_number():
    """The hub's hexadecimal text is brought to one length and case before it is compared."""
    events = [
        Event(
            {translate.DEVICE: "cam-1", translate.SOURCE: "deviceConnectionStateEvents"},
            {"opType": "deviceConnected"},
            json.dumps({"sequenceNumber": number}).encode(),
        )
        for number in ("ff", "100", "xyz", 7)
    ]
    low, high, *bad = [translate.read(event) for event in events]
    assert low.order < high.order
    assert bad == [None, None]


def test_the_registry_tells_of_devices_not_of_modules(hub):
    """A device that is made or deleted is told; a module is not."""
    hub.registry.delete("cam-1")
    lives = [word for word in words(hub, "edgefleet") if isinstance(word, Lifecycle)]
    assert lives == [Lifecycle("cam-1", created=True), Lifecycle("cam-1", created=False)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["properties", "reported", "edgefleet", "report", "sha256", "size", "n",
                         "0", "sequenceNumber"]) | st.text(max_size=3),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
VALUES = st.text(max_size=6) | st.binary(max_size=6) | st.integers() | st.none()
SOURCES = st.sampled_from(
    ["Telemetry", "twinChangeEvents", "deviceConnectionStateEvents", "deviceLifecycleEvents", "?"]
)


@settings(max_examples=400, deadline=None)
@given(
    source=SOURCES | VALUES,
    device=st.sampled_from(["cam-1", "", "../x", "a/b", b"cam-1"]) | VALUES,
    properties=st.dictionaries(
        st.sampled_from(["kind", "stream", "twin", "opType", "moduleId"]) | st.text(max_size=4),
        st.sampled_from(["get", "ev", "reported", "deviceConnected", "createDeviceIdentity"])
        | VALUES,
        max_size=5,
    ),
    body=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_nothing_that_is_sent_makes_it_raise(source, device, properties, body):
    """Whatever the event, it is read or left, and nobody speaks in another's name."""
    system = translate.plain({translate.SOURCE.encode(): source, translate.DEVICE: device})
    word = translate.read(Event(system, translate.plain(properties), body), "edgefleet")
    if word is not None:
        assert word.device == system[translate.DEVICE]
    if isinstance(word, Connection):
        assert len(word.order) == 64


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"1" * 5000])
def test_deep_and_broken_bodies_are_left(body):
    """JSON that is nested without end, no text, or a huge number is nothing to us."""
    system = {translate.DEVICE: "cam-1", translate.SOURCE: "twinChangeEvents"}
    assert translate.read(Event(system, {}, body)) is None


def test_text_that_is_no_unicode_is_no_report():
    """JSON can say half a character; a report of it is asked for anew, not fallen over."""
    report = {"sha256": "a" * 64, "size": 1, "n": 1, "0": "\ud800"}
    body = json.dumps({"properties": {"reported": {"edgefleet": {"report": report}}}}).encode()
    system = {translate.DEVICE: "cam-1", translate.SOURCE: "twinChangeEvents"}
    assert translate.read(Event(system, {}, body)) == Change("cam-1", "", None, partial=True)
