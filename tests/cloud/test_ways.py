"""Each device is reached where it last reported from; what moves it is its own signed word."""

from __future__ import annotations

import pytest
from sqlmodel import select

from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub.ways import BROKER, Moves, Ways, heard_on, here
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.transports.routed import DisconnectorOfAll, RoutedTransport
from edgefleet_cloud.uplink import Uplink
from edgefleet_shared import strict_json, topics
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Desired, Get
from tests.brokers import until
from tests.cloud.hub_world import HubWorld
from tests.cloud.rollout_world import RolloutWorld
from tests.fakes.cloud_transport import MemoryBroker, MemoryTransport
from tests.fakes.disconnector import RecordingDisconnector
from tests.fakes.speaking_device import SpeakingDevice

MAIN = IotHub(name="main", host="main.azure-devices.net", events_file="x")
TWO = IotHub(
    name="two", host="two.azure-devices.net", events_file="x", dps_scope="0ne00AB", default=True
)
ASK = strict_json.encode(Get(1, 0))


class MixedWorld:
    """A fleet on MQTT and on one hub, and one device that can be at either."""

    def __init__(self, database, hub_first: bool = False) -> None:
        self.database = database
        self.hub = HubWorld(database)
        self.broker = MemoryBroker()
        ways = Ways([self.hub.config])
        transports = {BROKER: MemoryTransport(self.broker), "main": self.hub.transport}
        self.routed = RoutedTransport(transports, lambda name: ways.way_of(database, name))
        self.world = RolloutWorld(database, self.routed)
        self.world.broker = self.broker
        self.world.shelf.publish("1.0.0")
        self.speaker = SpeakingDevice("cam-1")
        self.hub.state.registry.create("cam-1", auth="certificateAuthority")
        with database.write() as session:
            session.add(self.speaker.row(online=True, way="main" if hub_first else ""))
        moves = Moves(ways, self.world.events_log, self.world.announcer.answer)
        listeners = [moves.heard, self.world.heard]
        ingest = Ingest(database, self.world.events_log, listeners, self.world.clock)
        uplink = Uplink(
            self.routed, ingest, self.world.announcer, database, lambda _session, _device: None
        )
        self.routed.start(uplink.handle)
        self.seq = 0

    def roll_out(self) -> None:
        """Assign 1.0.0 to the device."""
        self.world.roll_out("1.0.0")

    def reports(self, way: str, seq: int = 0, **fields) -> None:
        """Have the device report on a way; a new number unless one is given."""
        self.seq = max(self.seq + 1, seq)
        sealed = self.speaker.reported(seq or self.seq, **fields)
        self._says(way, topics.reported("cam-1"), sealed)

    def asks(self, way: str) -> None:
        """Have the device ask for its document on a way."""
        self._says(way, topics.get("cam-1"), ASK)

    def row(self) -> DeviceRow:
        """Return the device's row."""
        with self.database.read() as session:
            found = session.get(DeviceRow, "cam-1")
        assert found
        return found

    def at_broker(self) -> Desired | None:
        """Return the document that the broker keeps for the device."""
        return _document(self.broker.retained.get(topics.desired("cam-1")))

    def at_hub(self) -> Desired | None:
        """Return the document that lies in the device's twin."""
        return _document(self.hub.document("cam-1"))

    def _says(self, way: str, topic: str, payload: bytes) -> None:
        if way == BROKER:
            self.broker.device_sends(topic, payload)
            until(lambda: not self.broker.queue)
        else:
            self.hub.upward.says(topic, payload)


def _document(data: bytes | None) -> Desired | None:
    return strict_json.decode(data, Desired, max_bytes=2**20, what="desired") if data else None


@pytest.fixture
def mixed(database):
    """A device on MQTT that should run 1.0.0."""
    made = MixedWorld(database)
    made.roll_out()
    until(made.at_broker)
    yield made
    made.routed.stop()


def test_a_device_that_moves_to_a_hub_is_told_there(mixed):
    """Its counter, its assignment and its history go with it; nothing is signed anew."""
    mixed.reports(BROKER, counter=1)
    before = mixed.row()
    mixed.reports("main", counter=1)
    until(mixed.at_hub)
    after = mixed.row()
    assert (before.way, after.way) == ("", "main")
    assert mixed.at_hub().assignment == mixed.at_broker().assignment
    assert (after.counter, after.key, after.enrollment) == (
        before.counter, before.key, before.enrollment
    )  # fmt: skip
    assert after.reported_seq == before.reported_seq + 1


def test_and_back_again(mixed):
    """The way follows the device as often as it moves; each move is in the log."""
    for way in ("main", BROKER, "main", BROKER):
        mixed.reports(way)
        assert mixed.row().way == way
    with mixed.database.read() as session:
        moves = session.exec(select(EventRow).where(EventRow.type == "device.moved")).all()
    assert [(e.before["way"], e.after["way"]) for e in moves] == [
        ("mqtt", "main"), ("main", "mqtt"), ("mqtt", "main"), ("main", "mqtt")
    ]  # fmt: skip


def test_what_a_broker_has_kept_moves_nobody_back(mixed):
    """The retained report of the time on MQTT comes again whenever the fleet manager connects."""
    mixed.reports(BROKER)
    mixed.reports("main")
    mixed.reports(BROKER, seq=1)
    assert mixed.row().way == "main"


def test_a_rollout_reaches_whoever_is_where(mixed):
    """After the move the next version goes into the twin, not to the broker."""
    mixed.reports("main")
    until(mixed.at_hub)
    kept = mixed.at_broker()
    mixed.world.shelf.publish("2.0.0")
    mixed.world.roll_out("2.0.0")
    newest = mixed.row().counter
    assert newest > kept.counter
    until(lambda: mixed.at_hub().counter == newest)
    assert mixed.at_broker() == kept


def test_a_question_is_answered_where_it_was_asked(mixed):
    """A device asks before it reports, so it need not wait until the report has moved it."""
    mixed.asks("main")
    until(mixed.at_hub)
    assert mixed.row().way == ""
    assert mixed.at_hub().assignment == mixed.at_broker().assignment


def test_who_speaks_at_a_hub_is_shut_out_there(mixed):
    """A device that came by itself, and was never written to, is disabled when it is revoked."""
    mixed.reports("main")
    assert mixed.hub.row("cam-1").status == "enabled"
    mixed.hub.set_state("cam-1", "revoked")
    DisconnectorOfAll([RecordingDisconnector(), mixed.hub.transport]).disconnect("cam-1")
    until(lambda: mixed.hub.state.registry.get("cam-1").status == "disabled")


def test_connected_and_pending_are_those_of_all_ways(mixed):
    """It is connected when every way is; what waits on any of them waits."""
    until(lambda: mixed.routed.connected)
    mixed.hub.upward.connected = False
    assert not mixed.routed.connected
    mixed.hub.upward.connected = True
    mixed.broker.set_up(False)
    assert not mixed.routed.connected
    mixed.routed.publish(topics.desired("cam-1"), b"x", retain=True)
    assert mixed.routed.pending == 1


def test_a_device_whose_hub_is_configured_no_more_gets_the_default(database):
    """Nothing fails for a name that cloud.toml has lost."""
    ways = Ways([])
    with database.write() as session:
        session.add(SpeakingDevice("cam-1").row(way="gone"))
    assert ways.way_of(database, "cam-1") == BROKER
    assert ways.way_of(database, "nobody") == BROKER


def test_without_a_broker_everybody_is_at_the_default_hub(database):
    """A device that was on MQTT is told at the hub: there is nothing else."""
    ways = Ways([MAIN, TWO], None)
    with database.write() as session:
        session.add(SpeakingDevice("cam-1").row())
    assert ways.way_of(database, "cam-1") == "two"
    with pytest.raises(InvalidInputError, match="no way 'mqtt'") as caught:
        ways.check("mqtt")
    assert caught.value.code == "unknown_way"
    assert "main, two" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "way", "told"),
    [
        ("", "two", ("iothub", "dps://0ne00AB")),
        ("main", "main", ("iothub", "iothub://main.azure-devices.net")),
        ("mqtt", "", ("mqtt", "mqtts://broker:8883")),
        ("gone", "two", ("iothub", "dps://0ne00AB")),
    ],
)
def test_what_a_new_device_is_told(asked, way, told):
    """Its ticket's way, or the default; a way that is gone since is the default too."""
    ways = Ways([MAIN, TWO], lambda: "mqtts://broker:8883")
    assert ways.chosen(asked) == way
    assert ways.told(way) == told


def test_the_way_of_a_message_is_known_while_it_is_handled():
    """And only then: what a controller publishes answers nobody."""
    assert here() is None
    with heard_on("main"):
        assert here() == "main"
    assert here() is None


def test_a_topic_that_is_not_ours_is_refused(database):
    """A mistake is found where it is made."""
    routed = RoutedTransport({BROKER: MemoryTransport(MemoryBroker())}, lambda _device: BROKER)
    with pytest.raises(InvalidInputError, match="no topic of ours"):
        routed.publish("x/y", b"")
