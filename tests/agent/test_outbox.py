"""The outbox: nothing lost unsaid, nothing numbered twice, never more disk than allowed."""

from __future__ import annotations

import json
import sqlite3
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from edgefleet_agent.ipc.control import DigestStats
from edgefleet_agent.outbox import BATCH_BYTES, Outbox
from edgefleet_agent.telemetry import Telemetry
from edgefleet_shared import dsse, strict_json
from edgefleet_shared.messages import BATCH_TYPE, Batch, TelemetryWindow


class Item(msgspec.Struct):
    """Anything that can be queued."""

    text: str


@pytest.fixture
def outbox(tmp_path):
    """An empty outbox of 100 kB."""
    outbox = Outbox(tmp_path / "outbox.db", 100_000)
    yield outbox
    outbox.close()


def test_items_come_back_in_order_with_numbers_from_one(outbox):
    """Each stream counts for itself."""
    outbox.add("events", Item("a"), Item("b"))
    outbox.add("receipts", Item("c"))
    assert outbox.pending("events") == ([1, 2], [{"text": "a"}, {"text": "b"}], 0)
    assert outbox.pending("receipts") == ([1], [{"text": "c"}], 0)
    assert outbox.pending("telemetry") is None


def test_numbers_go_on_after_everything_was_sent_and_after_a_restart(outbox, tmp_path):
    """An empty stream still knows what it has given."""
    outbox.add("events", Item("a"))
    outbox.remove("events", [1])
    outbox.add("events", Item("b"))
    outbox.remove("events", [2])
    outbox.close()
    again = Outbox(tmp_path / "outbox.db", 100_000)
    again.add("events", Item("c"))
    assert again.pending("events").seqs == [3]
    assert again.next_number("reported") == 1
    assert again.next_number("reported") == 2
    again.close()


def test_the_budget_drops_telemetry_first_and_receipts_last(outbox):
    """What is dropped leaves a hole in the numbers and is counted."""
    for stream in ("receipts", "events", "telemetry"):
        for _ in range(30):
            outbox.add(stream, Item("x" * 1000))
    assert outbox.counts()["telemetry"] == 30
    for _ in range(30):
        outbox.add("events", Item("x" * 1000))
    assert outbox.counts()["receipts"] == 30
    assert outbox.counts()["events"] == 60
    assert outbox.counts().get("telemetry", 0) < 10
    for _ in range(60):
        outbox.add("receipts", Item("x" * 1000))
    assert outbox.counts()["receipts"] == 90
    pending = outbox.pending("events")
    assert pending.dropped == 60 - outbox.counts()["events"]
    assert pending.seqs[0] == pending.dropped + 1


def test_a_batch_sealed_is_within_its_limit(outbox):
    """However long the items are, the envelope stays below 48 kB."""
    key = CryptoSigner.generate_ecdsa()
    for _ in range(40):
        outbox.add("events", Item("x" * 3000))
    sent = 0
    while pending := outbox.pending("events"):
        batch = Batch(1, "cam-1", "b", "events", "t", pending.seqs, pending.items)
        assert len(dsse.seal(strict_json.encode(batch), BATCH_TYPE, key)) <= BATCH_BYTES
        sent += len(pending.seqs)
        outbox.remove("events", pending.seqs)
    assert sent > 30


def test_a_damaged_file_is_set_aside_and_numbers_jump_ahead(outbox, tmp_path):
    """Old numbers are unknown, so the new ones begin beyond any of them, and it is said."""
    outbox.add("events", Item("a"))
    outbox.close()
    path = tmp_path / "outbox.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    again = Outbox(path, 100_000)
    assert again.lost
    again.add("events", Item("b"))
    assert again.pending("events").seqs[0] > 1_000_000_000_000
    assert (tmp_path / "outbox.db.damaged").exists()
    again.close()


def test_a_note_and_its_items_are_one_transaction(outbox, tmp_path):
    """If the items cannot be written the note stays as it was."""
    outbox.add("telemetry", Item("a"), note=("n", b"1"))
    with pytest.raises(ValueError, match="bytes"):
        outbox.add("telemetry", Item("b"), Item("x" * 40_000), note=("n", b"2"))
    assert outbox.note("n") == b"1"
    assert outbox.pending("telemetry").seqs == [1]
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        assert db.execute("SELECT count(*) FROM items").fetchone() == (1,)
    db.close()


def reading(requests: int, latency: dict[int, int], role: str = "active", **counts):
    """Return the gateway's counters of one digest."""
    zero = dict.fromkeys(("client_errors", "server_errors", "rejected", "nonfinite", "replayed",
                          "crashes", "in_flight", "memory_kb"), 0)  # fmt: skip
    return DigestStats("m", "1.0.0", "d", role, requests, **zero | counts, latency=latency,
                       compute=latency)  # fmt: skip


def windows(outbox) -> list[TelemetryWindow]:
    """Return every window in the outbox."""
    pending = outbox.pending("telemetry")
    return msgspec.convert(pending.items if pending else [], list[TelemetryWindow], strict=False)


def clock():
    """Return a stamp that differs at each call."""
    numbers = iter(range(10**6))
    return lambda: f"t{next(numbers)}"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["answer", "close", "restart"]), st.integers(0, 50)), max_size=30
    )
)
def test_windows_add_up_to_what_was_answered(tmp_path_factory, steps):
    """Whatever the order of answers, windows and restarts of agentd: none lost, none twice."""
    path = tmp_path_factory.mktemp("t") / "o.db"
    outbox = Outbox(path, 10**7)
    telemetry = Telemetry(outbox, clock())
    total, latency = 0, {}
    for what, count in steps:
        if what == "answer":
            total += count
            latency[count] = latency.get(count, 0) + count
        elif what == "close":
            telemetry.close_windows("boot", [reading(total, dict(latency))])
        else:
            outbox.close()
            outbox = Outbox(path, 10**7)
            telemetry = Telemetry(outbox, clock())
    telemetry.close_windows("boot", [reading(total, dict(latency))])
    found = windows(outbox)
    assert sum(w.requests for w in found) == total
    assert sum(sum(w.latency.values()) for w in found) == total
    assert all(before.end == after.start for before, after in pairwise(found))
    outbox.close()


def test_a_new_gateway_counts_from_zero(outbox):
    """Another boot id means that all it has counted is new."""
    telemetry = Telemetry(outbox, clock())
    telemetry.close_windows("one", [reading(10, {5: 10})])
    telemetry.close_windows("two", [reading(3, {5: 3})])
    assert [w.requests for w in windows(outbox)] == [10, 3]


def test_a_standby_that_nobody_asks_is_not_told_and_an_active_one_is(outbox):
    """No traffic is news of an active model, and none of a standby."""
    telemetry = Telemetry(outbox, clock())
    telemetry.close_windows("one", [reading(0, {}, role="standby")])
    assert windows(outbox) == []
    telemetry.close_windows("one", [reading(0, {})])
    assert [w.requests for w in windows(outbox)] == [0]
    assert json.loads(outbox.note("telemetry"))["boot"] == "one"
