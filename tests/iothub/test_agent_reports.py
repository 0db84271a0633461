"""What the agent reports to a hub's twin and hears from it: pacing, budgets, pointers, methods."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_shared import strict_json, twin
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.messages import Get, Reported, SlotReport
from tests.agent.world import until
from tests.iothub_agent import DEVICE, HubWorld
from tests.transport_caller import Done, Events, Sender, sealed

# The SDK leaves sockets of paho 1.6.1 to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[HubWorld]:
    """A hub with one device."""
    made = HubWorld(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(world: HubWorld):
    """Return what starts an agent and waits until it is connected."""
    started = []

    def begin(**options):
        transport, events = world.agent(**options), Events()
        started.append(transport)
        transport.start(events)
        until(lambda: events.connected, "connected")
        return transport, events

    yield begin
    for transport in started:
        transport.stop()


def report(counter: int, *slots: str) -> bytes:
    """Return an envelope with a report of these slots."""
    each = SlotReport("d-1", 1, 1, "succeeded", "sha256:a", "1.0.0")
    said = Reported(1, DEVICE, "boot-1", counter, "2026-01-01T00:00:00Z", counter,
                    dict.fromkeys(slots, each))  # fmt: skip
    return json.dumps({"payload": base64.b64encode(strict_json.encode(said)).decode()}).encode()


def publish(transport, payload: bytes) -> None:
    """Report something and wait until the hub holds it."""
    done = Done()
    transport.publish_reported(payload, done)
    until(lambda: done.told == [True], "held")


def section(world: HubWorld) -> dict:
    """Return our section of the reported properties."""
    return world.hub.twin(DEVICE)["properties"]["reported"][twin.SECTION]


def test_the_twin_shows_counter_and_slots_and_drops_those_that_are_gone(world, start):
    """A twin query can count devices by version; a slot that ended is no more in it.

    Even one that ended while we were away.
    """
    transport, _ = start()
    publish(transport, report(1, "cam", "mic"))
    assert section(world)["slots"]["mic"] == {"state": "succeeded", "version": "1.0.0"}
    publish(transport, report(2, "cam"))
    assert set(section(world)["slots"]) == {"cam"}
    transport.stop()
    second, _ = start()
    publish(second, report(3, "gps"))
    assert (section(world)["counter"], set(section(world)["slots"])) == (3, {"gps"})
    assert world.reported() == report(3, "gps")


def test_a_storm_of_reports_costs_few_updates_and_the_newest_is_held(world, start):
    """Two hundred at once are a handful of updates; each `done` is told once, with True."""
    transport, _ = start(report_min_s=0.3)
    before = world.hub.throttles.counts()["twin_updates"]["calls"]
    sender = Sender(transport.publish_reported, newest=True)
    for turn in range(200):
        sender.send(report(turn))
    until(lambda: all(sender.told), "told")
    assert len(sender.held) == 200
    assert set(sender.told) == {1}
    assert world.reported() == report(199)
    assert world.hub.throttles.counts()["twin_updates"]["calls"] - before <= 20


def test_a_hub_that_throttles_is_given_time_and_nothing_is_lost(world, start):
    """429 for reports and for reads: neither ends the connection, and nobody is told False."""
    world.hub.throttles.set("twin_updates", 1, 3600)
    transport, events = start()
    world.hub.throttles.spend("twin_updates")
    sender = Sender(transport.publish_reported, newest=True)
    sender.send(report(1))
    until(lambda: throttled(world, "twin_updates") >= 2, "refused twice")
    sender.send(report(2))
    world.hub.throttles.set("twin_updates", 50)
    until(lambda: len(sender.held) == 2, "held")
    assert world.reported() == report(2)
    assert not sender.lost
    assert not events.disconnected


def throttled(world: HubWorld, operation: str) -> int:
    """Return how often the hub has refused an operation."""
    return world.hub.throttles.counts()[operation]["throttled"]


def test_a_hub_that_throttles_reads_is_asked_again_on_the_same_connection(world, start):
    """Connections have a budget too: a busy hub is not left and called anew."""
    world.hub.throttles.set("twin_reads", 1, 3600)
    world.hub.throttles.spend("twin_reads")
    transport, events = world.agent(), Events()
    transport.start(events)
    try:
        until(lambda: throttled(world, "twin_reads") >= 2, "refused twice")
        assert not events.connected
        world.hub.throttles.set("twin_reads", 100)
        until(lambda: events.connected, "connected")
        assert not events.disconnected
    finally:
        transport.stop()


@pytest.mark.parametrize("how", ["it is too large", "other software fills the twin"])
def test_a_report_that_the_twin_does_not_take_goes_as_a_message(world, start, how):
    """It is held all the same, and the next small one lies in the twin again."""
    payload = sealed("e30=" * 300)
    if how == "it is too large":
        payload = b"{" + b" " * twin.INLINE_MAX + b"}"
    else:
        filled = {f"k{n}": "x" * 4000 for n in range(8)}
        world.hub.report(DEVICE, "", {"other": filled})
    transport, events = start()
    publish(transport, payload)
    assert world.bodies("reported") == [payload]
    assert world.reported() is None
    world.hub.report(DEVICE, "", {"other": None})
    publish(transport, sealed("MQ=="))
    assert world.reported() == sealed("MQ==")
    assert not events.disconnected


def test_messages_carry_what_routes_and_readers_need(world, start):
    """Kind and stream as properties; type, encoding and an id of their own as the system's."""
    transport, _ = start()
    for _ in range(2):
        done = Done()
        transport.publish_batch("telemetry", sealed("e30="), done)
        until(lambda done=done: done.told == [True], "held")
    events = [e for e in world.hub.log.all() if e.properties.get(twin.STREAM) == "telemetry"]
    assert [e.properties for e in events] == [{"kind": "ev", "stream": "telemetry"}] * 2
    assert {e.system["content_type"] for e in events} == {"application/json"}
    assert {e.system["content_encoding"] for e in events} == {"utf-8"}
    assert len({e.system["message_id"] for e in events}) == 2


def test_asking_hands_over_what_lies_there_and_says_what_was_seen(world, start):
    """The question names the newest counter we have, and the digest that the twin shows."""
    transport, events = start()
    transport.request_desired(3)
    until(lambda: world.bodies("get"), "asked")
    assert twin.SEEN not in asked(world)[0]
    world.assign(b"document")
    until(lambda: events.desired == [b"document"], "desired")
    transport.request_desired(41)
    until(lambda: len(events.desired) == 2, "handed over again")
    until(lambda: len(world.bodies("get")) == 2, "asked again")
    have = strict_json.decode(world.bodies("get")[1], Get, max_bytes=1000, what="get").have
    assert have == 41
    assert asked(world)[1][twin.SEEN] == twin.digest(b"document")


def asked(world: HubWorld) -> list[dict[str, str]]:
    """Return the properties of every question."""
    return [named for named, _ in world.messages() if named.get(twin.KIND) == "get"]


def test_a_document_that_is_only_pointed_to_is_fetched(world, start):
    """Over HTTPS, again until it is there; a small one that follows lies in the twin itself."""
    answers = [UnavailableError("away"), b"large document"]

    def fetch() -> bytes:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    transport, events = start(fetch=fetch)
    world.assign(b"large document", inline_max=0)
    until(lambda: events.desired == [b"large document"], "fetched")
    world.assign(b"small document")
    until(lambda: events.desired[-1] == b"small document", "inline")
    assert not answers
    assert not events.disconnected
    transport.stop()


def test_a_document_that_is_not_whole_is_fetched_instead_of_believed_to_be_none(world, start):
    """Somebody wrote into our section by hand: the fleet manager knows better."""
    _, events = start(fetch=lambda: b"from the fleet manager")
    broken = {twin.SECTION: {"document": {"sha256": "x", "size": 1, "n": 1}}}
    world.hub.patch_twin(DEVICE, "", {"properties": {"desired": broken}})
    until(lambda: events.desired == [b"from the fleet manager"], "fetched")


def test_a_word_that_asks_to_renew_comes_and_comes_again_after_a_break(world, start):
    """It lies in the twin until it is taken back, as a retained message does."""
    _, events = start()
    world.ask_to_renew(b'{"v":1,"key":"sha256:a"}')
    until(lambda: events.asked == [b'{"v":1,"key":"sha256:a"}'], "asked")
    world.double.cut(DEVICE)
    until(lambda: len(events.asked) == 2, "asked again")
    world.ask_to_renew(b"")
    world.assign(b"document")
    until(lambda: events.desired, "desired")
    assert len(events.asked) == 2


def test_direct_methods_are_answered(world, start):
    """Ping says who is there; report sends the newest again; an unknown one is told so."""
    transport, events = start()

    def call(name: str, payload: object) -> tuple[int, dict]:
        sent = world.hub.method(DEVICE, "", name, json.dumps(payload).encode())
        status, body = sent.result(15)
        return status, json.loads(body or b"{}")

    assert call("ping", None) == (200, {"device": DEVICE, "boot": "boot-1", "agent": "9"})
    assert call("report", None)[0] == 404
    publish(transport, sealed("e30="))
    world.hub.report(DEVICE, "", {twin.SECTION: None})
    assert call("report", {})[0] == 200
    until(lambda: world.reported() == sealed("e30="), "reported again")
    assert call("renew", {"v": 1, "key": "sha256:a"})[0] == 200
    until(lambda: events.asked, "asked")
    assert call("renew", 5)[0] == 400
    assert call("format", {})[0] == 404


def test_changes_that_come_in_a_rush_end_with_the_newest(world, start):
    """Two hundred patches from two threads: the last one handed over is the last one written."""
    _, events = start()
    lock, numbers = threading.Lock(), iter(range(200))

    def write() -> None:
        while True:
            with lock:
                if (number := next(numbers, None)) is None:
                    return
                world.assign(f"{number:03}".encode())

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: events.desired[-1:] == [b"199"], "the newest")
    assert events.desired == sorted(events.desired)
