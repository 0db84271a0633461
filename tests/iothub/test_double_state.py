"""The hub's own rules, without a socket: twins, throttles, queues, the log of events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgefleet_provisioning.iothub_double.clock import Clock
from edgefleet_provisioning.iothub_double.limits import Throttles, method_cost
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.sessions import Message
from edgefleet_provisioning.iothub_double.state import Azure, Hub
from edgefleet_shared import twin as contract


class Heard:
    """A connected device that writes down what it is told."""

    def __init__(self, methods: bool = True) -> None:
        self.patches: list[dict[str, Any]] = []
        self.methods: list[tuple[str, str, bytes]] = []
        self.messages: list[Message] = []
        self.out: list[str] = []
        self.listens = methods

    def desired(self, patch: dict[str, Any]) -> None:
        self.patches.append(patch)

    def method(self, rid: str, name: str, payload: bytes) -> bool:
        self.methods.append((rid, name, payload))
        return self.listens

    def c2d(self, message: Message) -> None:
        self.messages.append(message)

    def thrown_out(self, reason: str) -> None:
        self.out.append(reason)


@pytest.fixture
def hub() -> Hub:
    """Return a hub that knows one device."""
    made = Azure().add("fleet-a.azure-devices.test")
    made.registry.create("d1")
    return made


def patch(hub: Hub, desired: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Patch the device's desired properties."""
    return hub.patch_twin("d1", "", {"properties": {"desired": desired}}, **kwargs)


def test_a_patch_merges_and_null_deletes(hub: Hub) -> None:
    """Objects merge, null deletes, everything else replaces, and the version counts each change."""
    patch(hub, {"a": {"x": 1, "y": 2}, "b": "keep"})
    twin = patch(hub, {"a": {"x": None, "z": 3}, "b": {"now": True}})
    desired = twin["properties"]["desired"]
    assert desired["a"] == {"y": 2, "z": 3}
    assert desired["b"] == {"now": True}
    assert desired["$version"] == 3
    assert set(desired["$metadata"]["a"]) == {"$lastUpdated", "y", "z"}


def test_a_replacement_leaves_nothing_of_the_old(hub: Hub) -> None:
    """PUT puts a section in the place of the old one, and tells the device the whole."""
    heard = Heard()
    hub.sessions.attach("d1", "", heard)
    patch(hub, {"old": 1})
    twin = patch(hub, {"new": 2, "nothing": None}, replace=True)
    assert {k for k in twin["properties"]["desired"] if k[0] != "$"} == {"new"}
    assert heard.patches == [{"old": 1, "$version": 2}, {"new": 2, "$version": 3}]


@pytest.mark.parametrize(
    "bad",
    [
        {"a.b": 1}, {"$a": 1}, {"a b": 1}, {"a\x01": 1}, {"": 1}, {"k" * 1025: 1},
        {"a": "x" * 4097}, {"a": 2**52}, {"a": [None]},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": {"k": {}}}}}}}}}}}},
        {f"part{i}": "x" * 4000 for i in range(9)},
    ],
)  # fmt: skip
def test_what_no_twin_holds_is_refused_whole(hub: Hub, bad: dict[str, Any]) -> None:
    """Keys, strings, numbers, depth and size have limits; a refused patch changes nothing."""
    before = hub.twin("d1")
    with pytest.raises(HubError) as refused:
        hub.report("d1", "", {"good": 1, **bad})
    assert refused.value.status == 400
    with pytest.raises(HubError):
        hub.patch_twin("d1", "", {"tags": {"t": 1}, "properties": {"desired": bad}})
    assert hub.twin("d1") == before


def test_ten_objects_deep_and_32_kib_are_taken(hub: Hub) -> None:
    """The limits themselves are still within them: ten objects below the section, 32 KiB."""
    deep: dict[str, Any] = {"leaf": 1}
    for _ in range(10):
        deep = {"o": deep}
    hub.report("d1", "", deep)
    keys = 8 * len("p0")
    hub.report("d1", "", {"o": None, **{f"p{i}": "x" * 4096 for i in range(7)}})
    hub.report("d1", "", {"p7": "x" * (4096 - keys)})
    with pytest.raises(HubError):
        hub.report("d1", "", {"q": True})


def test_our_largest_documents_fit(hub: Hub) -> None:
    """What the contract puts into a twin at most is within the hub's limits, in both sections."""
    document = contract.document_patch(b"x" * contract.INLINE_MAX)
    patch(hub, document)
    patch(hub, contract.renew_patch(b"x" * contract.PART_CHARS))
    hub.report("d1", "", contract.report_patch(b"y" * contract.INLINE_MAX) or {})
    read = contract.read_document(hub.device_twin("d1")["desired"])
    assert read is not None
    assert read.payload == b"x" * contract.INLINE_MAX


def test_an_etag_that_has_changed_refuses(hub: Hub) -> None:
    """If-Match lets one writer win; a device's report changes no etag."""
    etag = hub.twin("d1")["etag"]
    hub.report("d1", "", {"a": 1})
    patch(hub, {"a": 1}, if_match=f'"{etag}"')
    with pytest.raises(HubError) as refused:
        patch(hub, {"a": 2}, if_match=f'"{etag}"')
    assert refused.value.status == 412
    patch(hub, {"a": 2}, if_match="*")


def test_changes_are_told_as_azure_tells_them(hub: Hub) -> None:
    """A change of a twin becomes an event with the documented properties and what changed."""
    hub.report("d1", "", {"a": {"b": 1}, "gone": None})
    (event,) = hub.log.all()
    body = json.loads(event.body)
    assert event.properties["opType"] == "updateTwin"
    assert event.properties["iothub-message-schema"] == "twinChangeNotification"
    assert (event.properties["hubName"], event.properties["deviceId"]) == ("fleet-a", "d1")
    assert event.annotations["iothub-message-source"] == "twinChangeEvents"
    assert event.annotations["iothub-connection-device-id"] == "d1"
    reported = body["properties"]["reported"]
    assert (reported["a"], reported["gone"], reported["$version"]) == ({"b": 1}, None, 2)
    assert "$lastUpdated" in reported["$metadata"]["a"]["b"]
    assert body["version"] == hub.twin("d1")["version"]


def test_connections_are_told_in_order_even_if_the_clock_goes_back(hub: Hub) -> None:
    """The sequence number of a connection event grows as text, whatever the clock does."""
    for _ in range(3):
        session = hub.sessions.attach("d1", "", Heard())
        hub.clock.advance(-60)
        hub.sessions.detach(session)
    events = hub.log.all()
    numbers = [json.loads(event.body)["sequenceNumber"] for event in events]
    assert len(numbers) == 6
    assert numbers == sorted(numbers)
    assert len({*numbers}) == 6
    assert {len(number) for number in numbers} == {64}
    assert [e.properties["opType"] for e in events[:2]] == ["deviceConnected", "deviceDisconnected"]


def test_a_second_connection_ends_the_first(hub: Hub) -> None:
    """One identity has one connection; the end of the older one does not touch the newer."""
    old, new = Heard(), Heard()
    first = hub.sessions.attach("d1", "", old)
    hub.sessions.attach("d1", "", new)
    hub.sessions.detach(first)
    patch(hub, {"a": 1})
    assert old.out
    said = [e.properties.get("opType") for e in hub.log.all()][:3]
    assert said == ["deviceConnected", "deviceDisconnected", "deviceConnected"]
    assert not old.patches
    assert new.patches
    assert hub.registry.get("d1").connected


def test_a_disabled_device_loses_its_connection(hub: Hub) -> None:
    """Disabling a device ends its connection and those of its modules; so does deleting it."""
    hub.registry.create("d1", "m1")
    device, module = Heard(), Heard()
    hub.sessions.attach("d1", "", device)
    hub.sessions.attach("d1", "m1", module)
    hub.registry.update("d1", status="disabled")
    assert device.out
    assert module.out
    hub.registry.update("d1", status="enabled")
    again = Heard()
    hub.sessions.attach("d1", "", again)
    hub.registry.delete("d1")
    assert again.out
    with pytest.raises(HubError):
        hub.twin("d1", "m1")


def test_methods_need_a_device_that_listens(hub: Hub) -> None:
    """A method reaches a connected device alone, and its answer whoever asked."""
    with pytest.raises(HubError) as refused:
        hub.method("d1", "", "ping", b"{}")
    assert (refused.value.status, refused.value.code) == (404, "DeviceNotOnline")
    heard = Heard()
    session = hub.sessions.attach("d1", "", heard)
    asked = hub.method("d1", "", "ping", b"{}")
    hub.sessions.answer(session, heard.methods[0][0], 200, b'"pong"')
    assert asked.result(0) == (200, b'"pong"')
    left = hub.method("d1", "", "ping", b"{}")
    hub.sessions.detach(session)
    assert isinstance(left.exception(0), HubError)
    hub.sessions.attach("d1", "", Heard(methods=False))
    with pytest.raises(HubError):
        hub.method("d1", "", "ping", b"{}")


def test_messages_wait_for_an_absent_device(hub: Hub) -> None:
    """Fifty cloud-to-device messages wait in their order until they are acknowledged."""
    sent = [hub.send_c2d("d1", str(i).encode()) for i in range(50)]
    with pytest.raises(HubError) as refused:
        hub.send_c2d("d1", b"one more")
    assert refused.value.status == 403
    hub.sessions.acknowledge("d1", sent[0].number)
    assert hub.twin("d1")["cloudToDeviceMessageCount"] == 49
    assert [m.body for m in hub.sessions.pending("d1")] == [str(i).encode() for i in range(1, 50)]


def test_throttles_refill_and_count() -> None:
    """S1 grants 50 twin updates a second, 100 reads and 20 queries a minute; then comes 429."""
    clock = Clock()
    throttles = Throttles("S1", 1, clock)
    throttles.set("twin_updates", 50)
    passed = 0
    with pytest.raises(HubError) as refused:
        for _ in range(500):
            throttles.spend("twin_updates")
            passed += 1
    assert 50 <= passed < 500
    assert refused.value.status == 429
    assert refused.value.retry_after
    clock.advance(1)
    throttles.spend("twin_updates")
    counts = throttles.counts()["twin_updates"]
    assert counts == {"calls": passed + 1, "throttled": 1}
    assert throttles.limit("twin_reads") == (100, 1)
    assert throttles.limit("queries") == (20, 60)


@pytest.mark.parametrize(
    ("tier", "units", "operation", "amount"),
    [
        ("S1", 9, "connections", 108), ("S1", 2, "d2c", 100), ("S2", 3, "d2c", 360),
        ("S2", 20, "twin_updates", 100), ("S2", 1, "twin_updates", 50),
        ("S1", 9, "twin_reads", 100),
        ("S3", 2, "twin_updates", 500), ("S3", 1, "registry", 5000), ("S1", 2, "methods", 327680),
    ],
)  # fmt: skip
def test_the_table_of_limits(tier: str, units: int, operation: str, amount: float) -> None:
    """Each tier grants what Microsoft's table says, by units where it says so."""
    assert Throttles(tier, units, Clock()).limit(operation).amount == amount


def test_a_method_counts_in_steps_of_4_kib() -> None:
    """The meter of methods is 4 KiB: an empty one counts as that, a byte more as two."""
    assert (method_cost(b""), method_cost(b"x" * 4096), method_cost(b"x" * 4097)) == (
        4096, 4096, 8192,
    )  # fmt: skip


def test_a_daily_quota_ends_messages(hub: Hub) -> None:
    """Where a quota is set, the day's last message is the last until the next day."""
    hub.throttles.daily = 2
    hub.throttles.spend("d2c")
    hub.throttles.spend("d2c")
    with pytest.raises(HubError) as refused:
        hub.throttles.spend("d2c")
    assert refused.value.status == 403
    hub.clock.advance(86400)
    hub.throttles.spend("d2c")


def test_the_log_is_read_from_anywhere(hub: Hub) -> None:
    """A device's events lie in one partition in order; a reader begins behind any of them."""
    told: list[int] = []
    stop = hub.log.listen(told.append)
    for i in range(5):
        hub.send_event("d1", "", str(i).encode(), {"kind": "ev"})
    stop()
    hub.send_event("d1", "", b"5")
    (partition,) = {*told}
    assert [e.sequence for e in hub.log.read(partition)] == list(range(6))
    assert [e.body for e in hub.log.read(partition, after=3)] == [b"4", b"5"]
    assert hub.log.read(partition, after=5) == []
    last = hub.log.last(partition)
    assert last is not None
    assert int(last.offset) > 0
    assert last.annotations["iothub-message-source"] == "Telemetry"
    assert json.loads(last.annotations["iothub-connection-auth-method"])["type"] == "sas"
    assert sum(len(hub.log.read(p)) for p in range(hub.log.partitions)) == 6


def test_hubs_are_told_apart_by_host() -> None:
    """A double holds several hubs; a device of one is unknown to the other."""
    azure = Azure()
    first, second = azure.add("A.azure-devices.test"), azure.add("b.azure-devices.test")
    first.registry.create("d1")
    assert azure.hub("a.AZURE-devices.test") is first
    with pytest.raises(HubError):
        second.registry.get("d1")
    with pytest.raises(HubError):
        azure.hub("c.azure-devices.test")
