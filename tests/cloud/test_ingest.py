"""What devices send: believed only when their own key signed it, each item once, on disk first."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime

import pytest

from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.devices.keys import DeviceKeys
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.paging import PageQuery
from edgefleet_cloud.refusals import PER_PERIOD, PERIOD_S, Refusals
from edgefleet_cloud.reports import repository
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.reports.opening import MAX_COUNTER
from edgefleet_shared import strict_json
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.messages import BATCH_TYPE, REPORTED_TYPE, DeviceEvent
from tests.fakes.speaking_device import (
    TS,
    SpeakingDevice,
    digest,
    receipt,
    slot_report,
    window,
)

NOW = datetime(2026, 2, 1, tzinfo=UTC)


class World:
    """An ingest over a real database, with one enrolled device."""

    def __init__(self, database) -> None:
        self.database = database
        self.seconds = 1000.0
        self.log = EventLog(EventFeed())
        self.heard: list[tuple[str, int]] = []
        self.ingest = Ingest(
            database,
            self.log,
            [lambda _session, device, reported: self.heard.append((device, reported.seq))],
            clock=lambda: NOW,
            refusals=Refusals(lambda: self.seconds),
        )
        self.cam = self.add("cam-1")

    def add(self, name: str, **fields) -> SpeakingDevice:
        device = SpeakingDevice(name)
        with self.database.write() as session:
            session.add(device.row(**fields))
        return device

    def row(self, name: str = "cam-1"):
        with self.database.read() as session:
            return devices.find(session, name)

    def events(self, kind: str):
        with self.database.read() as session:
            query = PageQuery(500, filter=f'type == "{kind}"')
            return list(self.log.page(session, query)[0])

    def stream(self, name: str):
        with self.database.read() as session:
            return repository.stream(session, "cam-1", 1, name)

    def refused(self) -> list[str]:
        return [event.data["code"] for event in self.events("report.refused")]


@pytest.fixture
def world(database):
    """One enrolled device, `cam-1`, before an ingest."""
    return World(database)


def test_a_reported_state_is_stored_and_told_on(world):
    """The newest document stands in the device's row, and listeners hear it once."""
    slots = {"digits": slot_report()}
    world.ingest.handle("cam-1", "reported", "", world.cam.reported(7, slots=slots, agent={"v": 1}))
    row = world.row()
    assert row.reported["slots"]["digits"]["active"] == digest("1.0.0")
    assert (row.reported_seq, row.agent, row.last_seen) == (7, {"v": 1}, "2026-02-01T00:00:00.000Z")
    assert world.heard == [("cam-1", 7)]


def test_only_a_higher_sequence_number_counts(world):
    """A retained copy and an older report that came late change nothing, in any order."""
    for seq in (3, 2, 3, 5, 4):
        message = world.cam.reported(seq, counter=seq)
        world.ingest.handle("cam-1", "reported", "", message)
    assert (world.row().reported_seq, world.row().reported["counter"]) == (5, 5)
    assert world.heard == [("cam-1", 3), ("cam-1", 5)]
    assert world.refused() == []


def test_a_new_enrolment_starts_the_numbers_anew(world):
    """After a device got a new key its first report counts, though its number is low."""
    world.ingest.handle("cam-1", "reported", "", world.cam.reported(50))
    world.ingest.handle("cam-1", "ev", "receipts", world.cam.batch("receipts", {9: receipt("1")}))
    fresh = SpeakingDevice("cam-1")
    with world.database.write() as session:
        row = devices.find(session, "cam-1")
        row.public_key, row.key = fresh.pem, fresh.key
        row.enrollment, row.reported_seq = 2, 0
        session.add(row)
    world.ingest.handle("cam-1", "reported", "", fresh.reported(1))
    world.ingest.handle("cam-1", "ev", "receipts", fresh.batch("receipts", {9: receipt("2")}))
    assert world.row().reported_seq == 1
    with world.database.read() as session:
        assert len(session.scalars(repository.receipts("cam-1", "")).all()) == 2


BAD = {
    "not signed at all": (b"{}", "malformed"),
    "not JSON": (b"\xff\x00", "malformed"),
    "empty": (b"", "malformed"),
    "too long": (b"[" * 200_000, "malformed"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("topic", [("reported", ""), ("ev", "events")])
def test_garbage_is_refused(world, case, topic):
    """What is no envelope leaves an event with its reason, and nothing else."""
    payload, code = BAD[case]
    world.ingest.handle("cam-1", *topic, payload)
    assert world.refused() == [code]
    assert world.row().last_seen is None


def _forgeries(world):
    mallory, other = SpeakingDevice("cam-1"), world.add("cam-2")
    cam, good = world.cam, slot_report()
    item = receipt("1.0.0")
    no_state = {"digits": slot_report(state="happy")}
    yield "another key", "reported", "", mallory.reported(1), "signature"
    yield "another device's report", "reported", "", other.reported(1), "signature"
    yield "about another device", "reported", "", cam.reported(1, device="cam-2"), "wrong_device"
    yield "of another type", "reported", "", cam.batch("events", {}), "payload_type"
    yield "not a Reported", "reported", "", cam.seal(b"{}", REPORTED_TYPE), "malformed"
    yield "number zero", "reported", "", cam.reported(0), "malformed"
    yield "no time", "reported", "", cam.reported(1, ts="noon"), "malformed"
    huge = cam.reported(1, counter=MAX_COUNTER + 1)
    yield "a counter without room above it", "reported", "", huge, "malformed"
    yield "no state", "reported", "", cam.reported(1, slots=no_state), "malformed"
    yield "no slot name", "reported", "", cam.reported(1, slots={"../x": good}), "invalid_name"
    yield (
        "a batch by another key",
        "ev",
        "receipts",
        mallory.batch("receipts", {1: item}),
        ("signature"),
    )
    yield "the wrong stream", "ev", "events", cam.batch("receipts", {1: item}), "malformed"
    yield "no such stream", "ev", "secrets", cam.batch("events", {}), "malformed"
    yield "a negative number", "ev", "receipts", cam.batch("receipts", {-1: item}), "malformed"
    short = {"v": 1, "device": "cam-1", "boot": "b", "stream": "events", "ts": TS}
    odd = strict_json.encode({**short, "seqs": [1, 2], "items": [{}]})
    yield "more numbers than items", "ev", "events", cam.seal(odd, BATCH_TYPE), "malformed"
    yield "presence that is none", "presence", "", b'{"v":1}', "malformed"
    yield "no such topic", "secret", "", cam.reported(1), "unknown_topic"
    yield "a long topic", "reported", "x", cam.reported(1), "unknown_topic"


def test_forged_and_misshapen_messages_are_refused(world):
    """Each is acknowledged with an event that says why, and changes nothing."""
    for name, kind, rest, payload, code in _forgeries(world):
        world.seconds += PERIOD_S
        world.ingest.handle("cam-1", kind, rest, payload)
        assert world.refused()[-1] == code, name
        row = world.row()
        assert (row.reported, row.reported_seq, row.last_seen) == (None, 0, None), name
    assert world.heard == []
    with world.database.read() as session:
        assert not session.scalars(repository.receipts("", "")).all()


@pytest.mark.parametrize("state", ["registered", "decommissioned"])
def test_a_device_without_standing_is_not_heard(world, state):
    """A device that is not enrolled, or no longer, or unknown, is refused; its key is nobody's."""
    gone = world.add("cam-9", state=state)
    for name in ("cam-9", "nobody"):
        world.ingest.handle(name, "reported", "", gone.reported(1))
        world.ingest.handle(name, "presence", "", gone.presence())
        assert DeviceKeys(world.database).key_of(name) is None
    assert world.refused() == ["unknown_device", "unknown_device"]
    assert world.row("cam-9").reported is None
    assert not world.row("cam-9").online


@pytest.mark.parametrize("event", ["renewal", "revoked", "decommissioned"])
def test_a_key_that_changes_while_a_message_is_read_loses_none(world, event):
    """What the old key signed counts after a renewal that came between; after its end, no more."""
    successor = SpeakingDevice("cam-1")
    opened, database = world.ingest._open, world.database

    def open_then_change(*what):
        found = opened(*what)
        with database.write() as session:
            row = devices.find(session, "cam-1")
            if row.key == world.cam.key and row.state == "enrolled":
                if event == "renewal":
                    row.previous_key, row.public_key = row.public_key, successor.pem
                    row.key = successor.key
                else:
                    row.state = event
                session.add(row)
        return found

    world.ingest._open = open_then_change
    world.ingest.handle("cam-1", "reported", "", world.cam.reported(1))
    lost = event != "renewal"
    assert world.row().reported_seq == (0 if lost else 1)
    assert world.refused() == (["unknown_device"] if lost else [])


def test_the_key_of_an_enrolled_device_is_known(world):
    """The key that was enrolled verifies what the device signs."""
    key = DeviceKeys(world.database).key_of("cam-1")
    assert key is not None
    assert key.keyval["public"].strip() == world.cam.pem.strip()


def test_a_flood_of_forgeries_is_told_a_few_times(world):
    """One event a device and code in a minute; the next says how many went untold."""
    for _ in range(50):
        world.ingest.handle("cam-1", "reported", "", b"{}")
    assert len(world.refused()) == 1
    world.seconds += PERIOD_S
    world.ingest.handle("cam-1", "reported", "", b"{}")
    assert world.events("report.refused")[-1].data["untold_before"] == 49


def test_many_names_do_not_outflood_the_limit():
    """Made-up device ids share one limit, and what is remembered of them is bounded."""
    refusals = Refusals(lambda: 1.0)
    told = [refusals.admit(f"x-{n}", "unknown_device") for n in range(5000)]
    assert sum(each is not None for each in told) == PER_PERIOD
    assert len(refusals._last) <= PER_PERIOD


def test_presence_follows_the_newest_start(world):
    """A will of an earlier start comes late and is stale; a repeated one is no news."""
    say = lambda payload: world.ingest.handle("cam-1", "presence", "", payload)  # noqa: E731
    say(world.cam.presence(True))
    assert (world.row().online, world.row().boot) == (True, "boot-1")
    say(world.cam.presence(True))
    world.cam.boot = "boot-2"
    say(world.cam.presence(True))
    world.cam.boot = "boot-1"
    say(world.cam.presence(False))
    assert (world.row().online, world.row().boot) == (True, "boot-2")
    world.cam.boot = "boot-2"
    say(world.cam.presence(False))
    assert not world.row().online
    assert len(world.events("device.online")) == 1
    assert len(world.events("device.offline")) == 1


def test_a_batch_that_comes_twice_is_stored_once(world):
    """QoS 1 repeats; overlapping batches store each item once, in every stream."""
    event = DeviceEvent(TS, "info", "verify", "manifest_ok", "Signed.", data={"n": 1})
    made = {"events": event, "receipts": receipt("1.0.0"), "telemetry": window()}
    for stream, item in made.items():
        for seqs in ((1, 2), (2, 3), (1, 2)):
            message = world.cam.batch(stream, dict.fromkeys(seqs, item))
            world.ingest.handle("cam-1", "ev", stream, message)
    assert len(world.events("device.manifest_ok")) == 3
    told = world.events("device.manifest_ok")[0]
    assert (told.step, told.subject, told.actor) == ("verify", "devices/cam-1", "devices/cam-1")
    assert (told.data["n"], told.data["level"], told.data["seq"]) == (1, "info", 1)
    with world.database.read() as session:
        assert len(session.scalars(repository.receipts("", "")).all()) == 3
    assert world.refused() == []


def test_gaps_are_counted_and_close_when_late_items_come(world):
    """A hole is missing until it is filled; what the device dropped it says itself."""
    send = lambda dropped, *seqs: world.ingest.handle(  # noqa: E731
        "cam-1", "ev", "telemetry",
        world.cam.batch("telemetry", dict.fromkeys(seqs, window()), dropped=dropped),
    )  # fmt: skip
    send(2, 3, 4, 9)
    assert (world.stream("telemetry").missing, world.stream("telemetry").dropped) == (4, 2)
    send(1, 5, 6)  # an older batch says less
    assert (world.stream("telemetry").missing, world.stream("telemetry").dropped) == (2, 2)
    send(2, 7, 8)
    assert world.stream("telemetry").missing == 0


def test_a_bad_item_costs_only_itself(world):
    """The rest of its batch is stored, an event names it, and it is not asked for again."""
    bad = [
        {"ts": TS},
        strict_json.encode(receipt("2.0.0", slot="a/b")),
        strict_json.encode(receipt("2.0.0", failed=-1)),
        strict_json.encode(receipt("2.0.0", ts="now")),
    ]
    items = {n: i if isinstance(i, dict) else strict_json.decode(
        i, dict, max_bytes=9999, what="item") for n, i in enumerate(bad, 2)}  # fmt: skip
    message = world.cam.batch("receipts", {1: receipt("1.0.0"), **items, 9: receipt("3.0.0")})
    world.ingest.handle("cam-1", "ev", "receipts", message)
    with world.database.read() as session:
        rows = session.scalars(repository.receipts("", "")).all()
    assert [row.to_version for row in rows] == ["1.0.0", "3.0.0"]
    assert world.refused() == ["malformed_items"]
    assert "4 items" in world.events("report.refused")[0].message
    assert world.stream("receipts").missing == 3  # 6, 7 and 8 never came


def test_bad_telemetry_and_events_are_left_out(world):
    """A histogram bucket that does not exist, a negative count, a word that is none of twelve."""
    for item in (window(latency={500: 1}), window(requests=-1), window(slot="")):
        seq = next(COUNTER)
        world.ingest.handle("cam-1", "ev", "telemetry", world.cam.batch("telemetry", {seq: item}))
    for step, code in (("fly", "x"), ("verify", "Not A Code")):
        event = DeviceEvent(TS, "info", step, code, "?")
        batch = world.cam.batch("events", {next(COUNTER): event})
        world.ingest.handle("cam-1", "ev", "events", batch)
    with world.database.read() as session:
        assert not list(repository.windows(session, repository.select(repository.WindowRow)))
    assert world.events("device.x") == []


COUNTER = itertools.count(1)


def test_a_listener_that_fails_leaves_nothing_behind(world):
    """The report is not stored, so it is delivered again; the error is the transport's to see."""

    def fail(*_args):
        raise RuntimeError

    ingest = Ingest(world.database, world.log, [fail])
    with pytest.raises(RuntimeError):
        ingest.handle("cam-1", "reported", "", world.cam.reported(1))
    assert world.row().reported is None


def test_a_busy_database_means_come_again(world):
    """Without the disk nothing is acknowledged: the error goes to the transport."""

    class Busy:
        def read(self):
            raise UnavailableError("The database is busy.")

    with pytest.raises(UnavailableError):
        Ingest(Busy(), world.log).handle("cam-1", "presence", "", world.cam.presence())


def test_two_messages_at_once_lose_nothing(world):
    """Batches of one stream handled by two threads end in one account."""
    batches = [world.cam.batch("telemetry", {n: window()}) for n in range(1, 21)]

    def send(part) -> None:
        for batch in part:
            world.ingest.handle("cam-1", "ev", "telemetry", batch)

    threads = [threading.Thread(target=send, args=(batches[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.stream("telemetry").ranges == [[1, 20]]
