"""Documents into twins: the newest wins, in order, once each, and nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest

from edgefleet_cloud.iothub.letters import Letters, content_of
from edgefleet_cloud.iothub.limits import Tier
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_shared import strict_json, topics, twin
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.messages import Desired
from tests.brokers import until
from tests.cloud.hub_world import HubWorld


def document(counter: int, ts: str = "2026-01-31T12:00:00.000Z", bundle: str = "") -> bytes:
    """Return a desired document."""
    return strict_json.encode(Desired(1, counter, ts, "e30=", bundle, "http://cloud/v1/blobs"))


@pytest.fixture
def world(database):
    """A hub with one device, and the transport to it."""
    made = HubWorld(database).start()
    made.enroll("cam-1")
    yield made
    made.transport.stop()


def tell(world: HubWorld, payload: bytes, device: str = "cam-1"):
    """Publish a desired document and wait until the twin has it."""
    world.transport.publish(topics.desired(device), payload, retain=True).result(10)


def test_a_document_lies_in_the_twin(world):
    """The device reads it whole, and it is known what the twin holds."""
    tell(world, document(1))
    assert world.document("cam-1") == document(1)
    assert world.row("cam-1").sha256 == twin.digest(document(1))


def test_equal_content_is_not_written_again(world):
    """A document that differs by its time alone costs nothing of the hub's limit."""
    tell(world, document(1))
    tell(world, document(1, ts="2026-01-31T13:00:00.000Z"))
    assert world.rest.writes == ["cam-1"]
    tell(world, document(2))
    assert world.rest.writes == ["cam-1", "cam-1"]


def test_what_the_device_does_not_see_is_written_again(world):
    """The device's word about its twin wins over our memory of it."""
    tell(world, document(1))
    world.told.seen("cam-1", twin.digest(document(1)))
    tell(world, document(1))
    assert len(world.rest.writes) == 1
    world.told.seen("cam-1", "")
    tell(world, document(1))
    assert len(world.rest.writes) == 2
    assert world.document("cam-1") == document(1)


def test_a_large_document_is_only_named(database):
    """What is longer than inline_max is fetched over HTTPS: the twin has its digest alone."""
    world = HubWorld(database, inline_max=100).start()
    world.enroll("cam-1")
    tell(world, document(1, bundle="x" * 5000))
    found = twin.read_document(world.state.device_twin("cam-1")["desired"])
    assert found == twin.Document(
        twin.digest(document(1, bundle="x" * 5000)), len(document(1, bundle="x" * 5000)), None
    )
    world.transport.stop()


def test_a_twin_that_others_have_filled_gets_the_name_alone(world):
    """If the document does not fit beside what others keep there, its digest does."""
    filling = {"others": {f"k{n}": "x" * 4000 for n in range(5)}}
    world.state.patch_twin("cam-1", "", {"properties": {"desired": filling}})
    tell(world, document(1, bundle="x" * 20_000))
    found = twin.read_document(world.state.device_twin("cam-1")["desired"])
    assert found.payload is None
    assert found.sha256 == twin.digest(document(1, bundle="x" * 20_000))


def test_the_word_to_renew_lies_beside_the_document(world):
    """It is written, is not written twice, and is taken back."""
    topic = topics.renew("cam-1")
    tell(world, document(1))
    world.transport.publish(topic, b'{"v":1}', retain=True).result(10)
    world.transport.publish(topic, b'{"v":1}', retain=True).result(10)
    assert len(world.rest.writes) == 2
    desired = world.state.device_twin("cam-1")["desired"]
    assert twin.read_renew(desired) == b'{"v":1}'
    assert twin.read_document(desired).payload == document(1)
    world.transport.publish(topic, b"", retain=True).result(10)
    assert twin.read_renew(world.state.device_twin("cam-1")["desired"]) in {None, b""}


def test_two_words_that_wait_are_one_write(world):
    """While the hub is away, document and word to renew become one patch."""
    world.rest.up = False
    futures = [
        world.transport.publish(topics.renew("cam-1"), b"r", retain=True),
        world.transport.publish(topics.desired("cam-1"), document(1), retain=True),
        world.transport.publish(topics.desired("cam-1"), document(2), retain=True),
    ]
    world.rest.up = True
    for future in futures:
        future.result(10)
    assert world.document("cam-1") == document(2)
    assert twin.read_renew(world.state.device_twin("cam-1")["desired"]) == b"r"
    assert len(world.rest.writes) <= 2


def test_topics_that_have_no_place_in_a_twin(world):
    """What a broker would keep of a device's own words needs nothing; others are refused."""
    world.transport.publish(topics.presence("cam-1"), b"", retain=True).result(0)
    with pytest.raises(InvalidInputError, match="no place"):
        world.transport.publish("f1/cam-1/dn/cmd", b"x")
    with pytest.raises(InvalidInputError, match="no topic of ours"):
        world.transport.publish("other/topic", b"x")


def test_an_unreachable_hub_is_waited_for(world):
    """It is not connected while writes fail, and all is written when it is back."""
    world.rest.up = False
    future = world.transport.publish(topics.desired("cam-1"), document(1), retain=True)
    until(lambda: not world.transport.connected)
    assert not future.done()
    assert world.transport.pending == 1
    world.rest.up = True
    future.result(10)
    until(lambda: world.transport.connected)
    assert world.transport.pending == 0


def test_an_answer_that_is_lost_does_no_harm(world):
    """The write is repeated; the twin holds the same."""
    world.rest.lose_answers = 2
    tell(world, document(1))
    assert world.document("cam-1") == document(1)
    assert world.rest.writes == ["cam-1"] * 3


def test_a_429_is_waited_out_and_slows_the_rest(world):
    """What was refused goes as soon as the hub allows; the rate is halved meanwhile."""
    world.state.throttles.set("twin_updates", 1, 0.5)
    names = [f"cam-{n}" for n in range(2, 5)]
    world.enroll(*names)
    futures = [
        world.transport.publish(topics.desired(name), document(1), retain=True) for name in names
    ]
    for future in futures:
        future.result(15)
    usage = world.transport.usage()
    assert usage.throttled == world.state.throttles.counts()["twin_updates"]["throttled"] > 0
    assert usage.share < 0.95
    assert [world.document(name) for name in names] == [document(1)] * 3


def test_many_are_written_at_once_and_each_device_in_order(world):
    """Slow answers do not slow the fleet; no older document overtakes a newer one."""
    world.rest.latency_s = 0.02
    names = [f"d-{n}" for n in range(40)]
    world.enroll(*names)
    last = [
        world.transport.publish(topics.desired(name), document(counter), retain=True)
        for counter in range(1, 4)
        for name in names
    ]
    for future in last:
        future.result(15)
    assert {world.document(name) for name in names} == {document(3)}
    assert world.rest.most_at_once > 4
    assert world.rest.at_once == 1


def test_the_pace_is_the_budgets(database):
    """No more writes go than the tier's limit leaves for them."""
    pacer = Pacer(Tier(10.0, 100.0, 100.0, 100.0, 1.0))
    world = HubWorld(database, pacer=pacer).start()
    names = [f"d-{n}" for n in range(6)]
    world.enroll(*names)
    began = time.monotonic()
    futures = [
        world.transport.publish(topics.desired(name), document(1), retain=True) for name in names
    ]
    futures[2].result(15)
    took = time.monotonic() - began
    world.transport.stop()
    # Each is charged with the 8 reports that it may bring: 0.95 s each, after a burst of 10.
    assert took > 0.8
    assert not futures[5].done()


def test_a_device_that_the_registry_lacks_is_created_and_told(world):
    """An enrolled device that somebody has removed comes back, and gets its document."""
    world.enroll("cam-9", known=False)
    tell(world, document(1), "cam-9")
    assert world.state.registry.get("cam-9").auth == "certificateAuthority"
    assert world.document("cam-9") == document(1)
    assert world.row("cam-9").status == "enabled"


def test_a_device_that_was_removed_and_created_anew_is_told_again(world):
    """What the old twin held is no longer believed."""
    tell(world, document(1))
    world.state.registry.delete("cam-1")
    tell(world, document(2))
    tell(world, document(2))
    assert world.document("cam-1") == document(2)


@pytest.mark.parametrize("state", ["revoked", "decommissioned", "registered"])
def test_nobody_is_told_who_is_not_enrolled(world, state):
    """Nothing is created for it, and nothing waits for it."""
    world.enroll("cam-9", state=state, known=False)
    tell(world, document(1), "cam-9")
    assert world.transport.pending == 0
    assert [device.device for device in world.state.registry.all()] == ["cam-1"]


def test_with_the_provisioning_service_nobody_is_created(database):
    """DPS alone creates devices; whoever is not there yet asks when it comes."""
    world = HubWorld(database, dps_scope="0ne00AB").start()
    world.enroll("cam-1", known=False)
    tell(world, document(1))
    assert world.state.registry.all() == []
    world.state.registry.create("cam-1", auth="certificateAuthority")
    world.told.seen("cam-1", "")
    tell(world, document(1))
    assert world.document("cam-1") == document(1)
    world.transport.stop()


def test_a_module_that_asks_is_told_in_its_own_twin(database):
    """On IoT Edge the agent is a module: where its question comes from, the document goes."""
    world = HubWorld(database, module="edgefleet").start()
    world.enroll("edge-1")
    world.state.registry.create("edge-1", "edgefleet")
    tell(world, document(1), "edge-1")
    world.told.seen("edge-1", "", "edgefleet")
    tell(world, document(1), "edge-1")

    def in_module() -> bytes | None:
        found = twin.read_document(world.state.device_twin("edge-1", "edgefleet")["desired"])
        return found.payload if found else None

    assert in_module() == document(1)
    world.told.seen("edge-1", twin.digest(document(1)), "edgefleet")
    tell(world, document(2), "edge-1")
    assert in_module() == document(2)
    assert world.document("edge-1") == document(1)
    world.state.registry.delete("edge-1", "edgefleet")
    tell(world, document(3), "edge-1")
    assert world.document("edge-1") == document(3)
    world.transport.stop()


def test_a_modules_first_word_is_remembered(database):
    """Before anything was written it is known already where it must go."""
    world = HubWorld(database, module="edgefleet").start()
    world.enroll("edge-1")
    world.state.registry.create("edge-1", "edgefleet")
    world.told.seen("nobody", "", "edgefleet")
    world.told.seen("edge-1", "", "edgefleet")
    tell(world, document(1), "edge-1")
    assert world.document("edge-1") is None
    assert world.row("edge-1").module == "edgefleet"
    world.transport.stop()


def test_what_no_twin_takes_is_given_up_and_said(world, caplog):
    """The future tells why; the next document is not held up."""
    future = world.transport.publish(topics.renew("cam-1"), b"\xff\xfe", retain=True)
    with pytest.raises(EdgeFleetError, match="fits into no twin"):
        future.result(10)
    assert "cam-1 is not told" in caplog.text
    tell(world, document(1))
    assert world.transport.pending == 0


def test_the_next_process_knows_what_twins_hold(database):
    """Nothing is written twice for a restart, and nothing is taken for written that was not."""
    first = HubWorld(database).start()
    first.enroll("cam-1", "cam-2")
    tell(first, document(1))
    first.rest.up = False
    waiting = first.transport.publish(topics.desired("cam-2"), document(1), retain=True)
    first.transport.stop()
    assert not waiting.done()
    second = first.another().start()
    for name in ("cam-1", "cam-2"):
        tell(second, document(1), name)
    second.transport.stop()
    assert second.rest.writes == ["cam-2"]


def test_a_letter_given_out_is_alone():
    """While one is in hand, a newer one of the device waits, then carries all that is unsaid."""
    letters = Letters()
    letters.put("a", "desired", b"1")
    first = letters.new()
    letters.put("a", "renew", b"r")
    assert letters.new() is None
    letters.back(first)
    again = letters.new()
    assert again.words == {"desired": b"1", "renew": b"r"}
    assert len(letters) == 1


def test_a_parked_letter_takes_newer_words():
    """Whoever waits for its device to be created is told the newest in the end."""
    letters, woken = Letters(), threading.Event()
    old = letters.put("a", "desired", b"1")
    letters.park(letters.new())
    new = letters.put("a", "desired", b"2")
    assert letters.new() is None
    letters.unpark("a")
    letter = letters.new()
    assert letter.words == {"desired": b"2"}
    new.add_done_callback(lambda _: woken.set())
    letters.done(letter)
    assert old.done()
    assert woken.is_set()


def test_content_is_the_document_without_its_time():
    """Whatever else differs is a difference; what is no document is compared as it is."""
    assert content_of(document(1)) == content_of(document(1, ts="x"))
    assert content_of(document(1)) != content_of(document(2))
    assert content_of(b"1") != content_of(b"2")
    assert content_of(b"\xff") != content_of(b"")
