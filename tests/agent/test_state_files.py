"""What lies in the state folder: whole or absent, and never taken for empty."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent import durable
from edgefleet_agent.journal import KEPT_QUARANTINES, Journal, SlotRecord, VersionRef
from edgefleet_agent.trust.floors import SLOTS, Floors, FloorStore
from edgefleet_shared.errors import InvalidInputError


def version(name: str) -> VersionRef:
    """Return a version of that name."""
    return VersionRef("m", name, f"sha256:{name}", 1, 1, "cpu", {f"blob-{name}": 5})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    """A full disk costs the new content, not the old."""
    path = tmp_path / "f"
    durable.atomic_write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="large"):
            durable.atomic_write(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_writes_left_that_never_ended_is_swept(tmp_path):
    """Temporary names go, everything else stays."""
    (tmp_path / ".f.abcd1234").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"mine")
    (tmp_path / "f").write_bytes(b"whole")
    durable.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "f"]


def test_a_file_that_cannot_be_read_is_an_error_and_not_nothing(tmp_path):
    """Only absence is None."""
    assert durable.read_bytes(tmp_path / "none") is None
    with pytest.raises(InvalidInputError) as caught:
        durable.read_bytes(tmp_path)
    assert caught.value.code == "unreadable"


def test_the_journal_comes_back_as_it_was_written(tmp_path):
    """Each write counts, and a second reader sees the last."""
    journal = Journal(tmp_path / "journal.json")
    journal.write("a", SlotRecord(active=version("1")))
    journal.write("b", SlotRecord(active=version("2"), previous=version("1")))
    again = Journal(tmp_path / "journal.json")
    assert (again.seq, again.slots) == (2, journal.slots)
    assert again.slot("none") == SlotRecord()
    assert again.needs() == {"sha256:1", "sha256:2", "blob-1", "blob-2"}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format":2,"seq":0,"slots":{}}', b"\xff"])
def test_a_damaged_journal_is_said_and_not_taken_for_empty(tmp_path, data):
    """Also one of a later format: an older agentd must not begin anew over it."""
    path = tmp_path / "journal.json"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        Journal(path)
    assert caught.value.code == "journal_damaged"
    assert path.read_bytes() == data


def test_the_list_of_rolled_back_deployments_is_bounded(tmp_path):
    """The newest are kept."""
    journal = Journal(tmp_path / "journal.json")
    journal.write("a", SlotRecord(quarantined=[str(n) for n in range(100)]))
    assert journal.slot("a").quarantined == [str(n) for n in range(100 - KEPT_QUARANTINES, 100)]


@given(cut=st.integers(0, 400), bit=st.integers(0, 7), steps=st.integers(1, 4))
def test_floors_survive_one_torn_slot_and_never_sink(tmp_path_factory, cut, bit, steps):
    """Cut short or with a bit flipped anywhere, one bad slot costs at most the newest step."""
    folder = tmp_path_factory.mktemp("floors")
    store = FloorStore(folder)
    for counter in range(1, steps + 1):
        store.commit(Floors(counter=counter))
    for name in SLOTS:
        path = folder / name
        if not path.exists():
            continue
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[cut % len(whole)] ^= 1 << bit
        for torn in (whole[: cut % len(whole)], bytes(flipped)):
            path.write_bytes(torn)
            found = FloorStore(folder).current
            assert (found is None and steps == 1) or found.counter >= steps - 1
        path.write_bytes(whole)
    assert FloorStore(folder).current == Floors(counter=steps)


def test_floors_that_did_not_change_are_not_written(tmp_path):
    """A retained message on each connect costs no flash."""
    store = FloorStore(tmp_path)
    store.commit(Floors(counter=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.commit(Floors(counter=1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
