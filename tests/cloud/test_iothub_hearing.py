"""What is done about each word of a hub, by the rooms that do it and a real database."""

from __future__ import annotations

import pytest

from edgefleet_cloud.iothub.translate import Change, Connection
from edgefleet_shared import twin
from edgefleet_shared.errors import UnavailableError
from tests.cloud.iothub_world import HubWorld


@pytest.fixture
def world(database) -> HubWorld:
    """Return a hub with one enrolled device, `cam-1`, that was heard at start `boot-1`."""
    made = HubWorld(database)
    made.cam = made.add("cam-1", boot="boot-1")
    return made


def test_a_report_in_the_twin_is_stored(world):
    """Reported properties with a whole report end where a report by MQTT does, and are counted."""
    world.hub.report("cam-1", "", twin.report_patch(world.cam.reported(1)))
    world.hear()
    assert world.row("cam-1").reported_seq == 1
    assert world.told.heard == [("reported", "cam-1")]


def test_half_a_report_is_asked_for(world):
    """A change that holds a part of the report only has the twin read, within its limit."""
    world.hub.report("cam-1", "", twin.report_patch(world.cam.reported(1)))
    world.hear()
    world.hub.report("cam-1", "", twin.report_patch(world.cam.reported(2)))
    world.forget_events()
    world.told.heard.clear()
    world.hearing.hear(Change("cam-1", "", None, partial=True))
    assert world.row("cam-1").reported_seq == 2
    assert world.told.heard == [("reported", "cam-1"), ("read",)]


def test_what_is_tried_again_is_counted_once(world):
    """A report whose handler must wait counts as one twin update, however often it is tried."""
    word = Change("cam-1", "", None, partial=True)
    world.hearing.hear(word, first=True)
    world.hearing.hear(word, first=False)
    assert world.told.heard.count(("reported", "cam-1")) == 1


def test_a_twin_that_is_gone_brings_nothing(world):
    """A device that was deleted between its report and our question is no trouble."""
    world.hub.registry.delete("cam-1")
    world.hearing.hear(Change("cam-1", "", None, partial=True))
    assert world.handled == []


def test_who_answers_a_get_knows_what_the_device_sees(world):
    """What a device says that it sees is told before its question is handled."""
    order = []
    world.told.seen = lambda device, sha256, module: order.append((device, sha256, module))
    world.hearing._handler = lambda topic, _payload: order.append(topic)
    world.hub.send_event("cam-1", "", b"{}", twin.message_properties("get", seen="d" * 64))
    world.hear()
    assert order == [("cam-1", "d" * 64, ""), "f1/cam-1/up/get"]


def test_not_now_is_passed_on(world):
    """If whoever must hear first cannot, nothing is handled: the event comes again."""
    world.told.refuse = True
    world.hub.send_event("cam-1", "", b"{}", twin.message_properties("get"))
    with pytest.raises(UnavailableError):
        world.hear()
    assert world.handled == []


def test_a_cut_line_shows_as_offline(world):
    """A device whose connection breaks is offline, with its last start, once."""
    world.hub.notices.connection("cam-1", "", connected=True)
    world.hear()
    assert world.row("cam-1").online
    world.hub.notices.connection("cam-1", "", connected=False)
    world.hear()
    assert not world.row("cam-1").online
    assert len(world.events("device.offline")) == 1


def test_of_two_words_the_newest_holds(world):
    """A going that comes after a newer coming, or comes twice, changes nothing."""
    went = Connection("cam-1", online=False, order="0" * 63 + "1")
    came = Connection("cam-1", online=True, order="0" * 63 + "2")
    world.hearing.hear(came)
    for _ in range(2):
        world.hearing.hear(went)
    assert world.row("cam-1").online
    assert world.at_hub("cam-1").connection == came.order


def test_a_device_that_has_moved_is_left_alone(database):
    """The hub's word on a connection counts only while the device speaks by that hub."""
    world = HubWorld(database)
    world.add("cam-1", boot="boot-1", online=True, way="")
    world.hearing.hear(Connection("cam-1", online=False, order="0" * 63 + "1"))
    assert world.row("cam-1").online


def test_a_stranger_is_told_once(world):
    """A device that the hub takes in and we do not know is told, and gone when it leaves."""
    world.hub.registry.create("stranger")
    world.hear()
    world.hub.registry.create("stranger", "module")
    world.hear()
    assert world.at_hub("stranger").unknown
    assert len(world.events("iothub.devices_unknown")) == 1
    assert world.events("iothub.devices_unknown")[0].data == {"count": 1, "devices": ["stranger"]}
    world.hub.registry.delete("stranger")
    world.hear()
    assert not world.at_hub("stranger").unknown


def test_a_device_that_is_taken_out_is_missed(world):
    """Of a device that speaks by the hub it is told when its registry knows it no more."""
    world.hub.registry.delete("cam-1")
    world.hear()
    assert world.at_hub("cam-1").missing
    assert len(world.events("iothub.devices_missing")) == 1
    world.hub.registry.create("cam-1")
    world.hear()
    assert not world.at_hub("cam-1").missing
    assert world.events("iothub.devices_unknown") == []
