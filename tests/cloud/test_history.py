"""Which digest ran where at a given time, and how models answered: the same in any order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import delete

from edgefleet_cloud import migrations
from edgefleet_cloud.database import Database
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.errors import NotFoundError
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.paging import PageQuery
from edgefleet_cloud.ports import Release
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.reports.schemas import Activation, TelemetryItem
from edgefleet_cloud.reports.service import Reports, TelemetryQuery
from edgefleet_cloud.reports.tables import ReceiptRow, StreamRow, WindowRow
from edgefleet_shared import histogram
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.times import format_time
from tests.fakes.speaking_device import SpeakingDevice, digest, receipt, window

BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
ALL = PageQuery(500)


def at(minute: float) -> str:
    """Return a time so many minutes after the beginning."""
    return format_time(BEGIN + timedelta(minutes=minute))


class Catalog:
    """Publishes every version of `digits`, each with the digest of its name."""

    def find(self, _session, model, version):
        if model != "digits":
            raise NotFoundError(f"There is no model {model!r}.")
        return Release(model, version, digest(version), 1, 1, 0, frozenset())

    def by_manifest(self, _session, _manifest):
        return None


class World:
    """An ingest, and what reads back what it stored."""

    def __init__(self, url: str = "sqlite://", names=("cam-1",)) -> None:
        self.database = Database(url)
        migrations.upgrade(self.database)
        log = EventLog(EventFeed())
        self.ingest = Ingest(self.database, log)
        self.reports = Reports(Devices(log), Catalog(), lambda: BEGIN + timedelta(hours=1))
        self.devices = {name: SpeakingDevice(name) for name in names}
        with self.database.write() as session:
            for device in self.devices.values():
                session.add(device.row())

    def forget(self) -> World:
        """Throw away what was reported: quicker than a new database."""
        with self.database.write() as session:
            for table in (ReceiptRow, WindowRow, StreamRow):
                session.exec(delete(table))
        return self

    def send(self, stream: str, items, device: str = "cam-1", **fields) -> None:
        batch = self.devices[device].batch(stream, items, **fields)
        self.ingest.handle(device, "ev", stream, batch)

    def history(self, slot: str = "", time: str = "", device: str = "cam-1"):
        with self.database.read() as session:
            rows, _ = self.reports.history(session, device, slot, time, ALL)
        return [Activation.of(row).model_dump(by_alias=True) for row in rows]

    def where(self, version: str, time: str = ""):
        with self.database.read() as session:
            rows, _ = self.reports.where_ran(session, "digits", version, time, ALL)
        return [row.device for row in rows]

    def telemetry(self, **query):
        with self.database.read() as session:
            found = self.reports.telemetry(session, TelemetryQuery(**query))
        return [TelemetryItem.of(each) for each in found]


@pytest.fixture
def world(tmp_path):
    """One device, and the life of its slot: 1.0.0, 2.0.0 for two minutes, back, stopped."""
    made = World(f"sqlite:///{tmp_path / 'history.db'}", ("cam-1", "cam-2"))
    made.send(
        "receipts",
        {
            1: receipt("1.0.0", at(0)),
            2: receipt("2.0.0", at(10)),
            3: receipt("1.0.0", at(12), kind="rollback", deployment="d-2"),
            4: receipt("", at(20)),
            5: receipt("7.0.0", at(5), slot="faces"),
        },
    )
    yield made
    made.database.close()


def test_history_tells_what_ran_from_when_to_when(world):
    """Each activation ends where the slot's next begins; a stop ends one and begins none."""
    found = world.history("digits")
    assert [(each["version"], each["kind"], each["from"], each["to"]) for each in found] == [
        ("1.0.0", "activate", at(0), at(10)),
        ("2.0.0", "activate", at(10), at(12)),
        ("1.0.0", "rollback", at(12), at(20)),
    ]
    assert found[2]["deployment"] == "d-2"
    assert found[0]["digest"] == digest("1.0.0")
    assert [each["version"] for each in world.history("faces")] == ["7.0.0"]
    assert world.history("faces")[0]["to"] is None
    assert len(world.history()) == 4


@pytest.mark.parametrize(
    ("minute", "version"),
    [(-1, None), (0, "1.0.0"), (9.99, "1.0.0"), (10, "2.0.0"), (12, "1.0.0"), (20, None)],
)
def test_history_at_one_time(world, minute, version):
    """An activation holds from its first millisecond up to the next one's first."""
    found = [each["version"] for each in world.history("digits", at(minute))]
    assert found == ([version] if version else [])


def test_where_a_version_ran(world):
    """The question turned round: which devices had this digest at that time."""
    world.send("receipts", {1: receipt("2.0.0", at(11))}, "cam-2")
    assert world.where("2.0.0", at(11)) == ["cam-1", "cam-2"]
    assert world.where("2.0.0", at(13)) == ["cam-2"]
    assert world.where("2.0.0") == ["cam-2"]
    assert world.where("1.0.0", at(3)) == ["cam-1"]
    assert world.where("3.0.0") == []


@pytest.fixture(scope="module")
def worlds():
    """Two worlds alike, for what arrives in two orders."""
    made = [World(names=("cam-1", "cam-2")) for _ in range(2)]
    yield made
    for world in made:
        world.database.close()


LIVES = st.lists(
    st.tuples(st.sampled_from(["1.0.0", "2.0.0", ""]), st.sampled_from(["digits", "faces"])),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None)
@given(st.data(), LIVES)
def test_the_order_of_arrival_does_not_matter(worlds, data, life):
    """Store and forward: shuffled, repeated and regrouped batches give the history of in-order."""
    receipts = {
        seq: receipt(version, at(seq), slot=slot) for seq, (version, slot) in enumerate(life, 1)
    }
    straight, shuffled = (world.forget() for world in worlds)
    straight.send("receipts", receipts)
    order = data.draw(st.permutations(list(receipts)))
    again = data.draw(st.lists(st.sampled_from(order), max_size=3))
    size = data.draw(st.integers(1, 3))
    arrivals = [*order, *again]
    for start in range(0, len(arrivals), size):
        part = {seq: receipts[seq] for seq in arrivals[start : start + size]}
        shuffled.send("receipts", part)
    assert shuffled.history() == straight.history()
    assert shuffled.history() == _by_hand(life)
    for minute in range(len(life) + 2):
        for slot in ("digits", "faces"):
            assert shuffled.history(slot, at(minute)) == straight.history(slot, at(minute))


def _by_hand(life):
    """Return the history as a reader of the in-order list would write it down."""
    found = []
    for seq, (version, slot) in enumerate(life, 1):
        later = [n for n, (_, other) in enumerate(life, 1) if n > seq and other == slot]
        if version:
            found.append(
                {
                    "device": "cam-1",
                    "slot": slot,
                    "digest": digest(version),
                    "version": version,
                    "kind": "activate",
                    "from": at(seq),
                    "to": at(later[0]) if later else None,
                    "deployment": "d-1",
                }
            )
    return found


def test_a_hole_is_bridged_until_it_is_filled(world):
    """With a receipt missing the neighbours meet; when it comes it takes its place."""
    world.send("receipts", {10: receipt("3.0.0", at(30)), 12: receipt("5.0.0", at(50))})
    assert [each["to"] for each in world.history("digits")[-2:]] == [at(50), None]
    world.send("receipts", {11: receipt("4.0.0", at(40))})
    ends = [(each["version"], each["to"]) for each in world.history("digits")[-3:]]
    assert ends == [("3.0.0", at(40)), ("4.0.0", at(50)), ("5.0.0", None)]


def test_a_clock_that_was_set_back_loses_no_receipt(world):
    """Sequence numbers order the history; an activation whose end lies before it never was at."""
    world.send("receipts", {6: receipt("8.0.0", at(100)), 7: receipt("9.0.0", at(60))})
    last = world.history("digits")[-2:]
    assert [(each["from"], each["to"]) for each in last] == [(at(100), at(60)), (at(60), None)]
    assert [each["version"] for each in world.history("digits", at(101))] == ["9.0.0"]


COUNTS = st.dictionaries(st.integers(0, len(histogram.EDGES_NS)), st.integers(1, 9), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["cam-1", "cam-2"]), COUNTS), min_size=1, max_size=6))
def test_merged_telemetry_is_the_exact_sum(worlds, parts):
    """Over devices and windows the histogram is that of all answers together."""
    world = worlds[0].forget()
    for seq, (device, counts) in enumerate(parts, 1):
        made = window(latency=counts, compute=counts, requests=sum(counts.values()))
        world.send("telemetry", {seq: made}, device)
    (found,) = world.telemetry()
    total = histogram.merge(*(counts for _, counts in parts))
    assert found.latency == total
    assert found.requests == sum(total.values())
    assert found.devices == len({device for device, _ in parts})
    p99 = histogram.quantile_ns(total, 0.99)
    assert found.p99_us == (None if p99 is None else round(p99 / 1000))


def test_telemetry_is_told_by_digest_and_cut_by_time(world):
    """Versions stand apart, windows count when they overlap, and filters are exact."""
    early = window("1.0.0", start=at(0), end=at(1))
    late = window("1.0.0", start=at(1), end=at(2), server_errors=2, nonfinite=1, crashes=1)
    world.send("telemetry", {1: early, 2: late, 3: window("2.0.0", start=at(2), end=at(3))})
    world.send("telemetry", {1: early}, "cam-2")
    get = world.telemetry
    assert [(each.version, each.requests, each.devices) for each in get()] == [
        ("1.0.0", 30, 2),
        ("2.0.0", 10, 1),
    ]
    assert (get()[0].server_errors, get()[0].nonfinite, get()[0].crashes) == (2, 1, 1)
    assert get()[0].compute_p50_us == round(histogram.quantile_ns({16: 1}, 0.5) / 1000)
    assert [each.requests for each in get(start=at(1), end=at(2))] == [10]
    assert [each.requests for each in get(device="cam-2")] == [10]
    assert [each.requests for each in get(digest=digest("2.0.0"))] == [10]
    assert [each.version for each in get(version="2.0.0", slot="digits")] == ["2.0.0"]
    assert get(slot="faces") == []
    for query in ({"start": "x"}, {"end": "x"}, {"start": at(2), "end": at(1)}):
        with pytest.raises(InvalidInputError) as caught:
            get(**query)
        assert caught.value.code == "time_span"
