"""Claims and positions of partitions in our database."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from edgefleet_cloud.iothub import eventhub
from edgefleet_cloud.iothub.checkpoints import Checkpoints, Position, Source
from edgefleet_cloud.iothub.partitions import SAVE_EVENTS, Held, Lag, Partition, lag, lost
from edgefleet_shared.errors import InvalidInputError

SOURCE = Source("main", "ns.servicebus.test", "main-1", "$Default")
AT = datetime(2026, 2, 1, tzinfo=UTC)
STAMP = "2026-02-01T00:00:00.000Z"


@pytest.fixture
def checkpoints(database) -> Checkpoints:
    """Return the checkpoints of a hub on which nothing was read yet."""
    return Checkpoints(database, SOURCE, lambda: 1000.0)


def wish(owner: str, partition: str = "0", **more: object) -> dict:
    """Return a claim as azure-eventhub asks for it."""
    return {
        "fully_qualified_namespace": SOURCE.namespace,
        "eventhub_name": SOURCE.eventhub,
        "consumer_group": SOURCE.consumer_group,
        "partition_id": partition,
        "owner_id": owner,
        **more,
    }


def at(sequence: int) -> Position:
    """Return the position of an event."""
    return Position(str(sequence * 400), sequence, STAMP)


def test_a_claim_is_listed_and_renewed(checkpoints):
    """A claim shows who has the partition and since when, and each renewal has a new etag."""
    (first,) = checkpoints.claim([wish("a")])
    (listed,) = checkpoints.claims()
    assert listed == first
    assert listed["last_modified_time"] == 1000.0
    (second,) = checkpoints.claim([first])
    assert second["etag"] != first["etag"]


def test_of_two_who_take_over_a_claim_one_wins(checkpoints):
    """A claim that follows an etag which is not the newest gets nothing."""
    (old,) = checkpoints.claim([wish("a")])
    (taken,) = checkpoints.claim([{**old, "owner_id": "b"}])
    assert checkpoints.claim([{**old, "owner_id": "c"}]) == []
    assert checkpoints.claims()[0]["owner_id"] == "b" == taken["owner_id"]


def test_of_many_who_claim_at_once_one_wins(database):
    """Eight servers that find a partition free at the same moment: it has one owner."""
    start, won = threading.Barrier(8), []

    def claim(owner: str) -> None:
        mine = Checkpoints(database, SOURCE)
        start.wait()
        won.extend(mine.claim([wish(owner)]))

    threads = [threading.Thread(target=claim, args=(f"s{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each["owner_id"] for each in Checkpoints(database, SOURCE).claims()] == [
        each["owner_id"] for each in won
    ]


def test_a_claim_that_is_given_back_stays_listed_as_nobodys(checkpoints):
    """A server that ends leaves its partition for the next without delay."""
    (mine,) = checkpoints.claim([wish("a")])
    checkpoints.claim([{**mine, "owner_id": ""}])
    assert checkpoints.claims()[0]["owner_id"] == ""


def test_positions_only_grow(checkpoints):
    """A server that saves late what another has passed long ago sets nothing back."""
    checkpoints.save("0", at(20))
    checkpoints.save("0", at(15))
    assert checkpoints.positions() == {"0": at(20)}
    checkpoints.save("0", at(21))
    assert checkpoints.positions() == {"0": at(21)}


def test_a_claim_keeps_the_position_and_the_reverse(checkpoints):
    """Claims and positions share a row and do not touch each other."""
    checkpoints.save("0", at(7))
    assert checkpoints.claims() == []
    checkpoints.claim([wish("a")])
    assert checkpoints.positions() == {"0": at(7)}
    checkpoints.save("0", at(8))
    assert checkpoints.claims()[0]["owner_id"] == "a"


def test_a_position_can_be_forgotten(checkpoints):
    """After it is forgotten a smaller one counts: the stream began anew."""
    checkpoints.save("0", at(900))
    checkpoints.forget("0")
    assert checkpoints.positions() == {}
    checkpoints.save("0", at(3))
    assert checkpoints.positions() == {"0": at(3)}


def test_another_namespace_has_positions_of_its_own(database, checkpoints):
    """After a failover nothing is known of the new endpoint, and the old is not forgotten."""
    checkpoints.save("0", at(5))
    other = Checkpoints(database, SOURCE._replace(namespace="west.servicebus.test"))
    assert other.positions() == {}
    assert other.claims() == []


def test_sequence_numbers_may_be_large(checkpoints):
    """A partition that has seen more than four billion events is no trouble."""
    checkpoints.save("0", at(2**40))
    assert checkpoints.positions()["0"].sequence == 2**40


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 20, 0),
        (11, 20, 0),
        (12, 20, 1),
        (21, 20, 10),
        (0, 9, None),
        (0, -1, None),
    ],
)
def test_what_was_lost_is_counted(first, last, expected):
    """Events after position 10 that are gone are counted; a shorter stream is another one."""
    assert lost(at(10), Held(first, last, AT)) == expected


def test_a_partition_says_what_it_holds():
    """What azure-eventhub says of a partition, also of one whose events have all expired."""
    said = {
        "beginning_sequence_number": 4,
        "last_enqueued_sequence_number": 9,
        "is_empty": False,
        "last_enqueued_time_utc": AT,
    }
    assert Held.of(said) == Held(4, 9, AT)
    assert Held.of({**said, "is_empty": True}) == Held(10, 9, AT)


def test_how_far_a_partition_is_behind():
    """The lag counts what can still be read, in events and in seconds of the hub's time."""
    held = Held(5, 20, datetime(2026, 2, 1, 0, 0, 9, tzinfo=UTC))
    assert lag("0", at(20), held, here=True) == Lag("0", 0, 0.0, here=True)
    assert lag("0", at(18), held, here=True) == Lag("0", 2, 9.0, here=True)
    assert lag("0", None, held, here=False) == Lag("0", 16, 0.0, here=False)
    assert lag("0", at(1), held, here=False).events == 16


def test_a_position_is_saved_by_count_and_by_time(checkpoints):
    """Not each event is a transaction: a hundred, or a second, then its position is on disk."""
    now = 0.0
    partition = Partition("0", checkpoints, None, lambda: now)
    for sequence in range(SAVE_EVENTS):
        assert not partition.due
        partition.done(at(sequence))
    assert partition.due
    partition.save()
    assert checkpoints.positions() == {"0": at(SAVE_EVENTS - 1)}
    partition.done(at(SAVE_EVENTS))
    assert not partition.due
    now = 1.0
    assert partition.due


def test_nothing_is_saved_ahead_of_what_is_done(checkpoints):
    """What a link sends again after it was mended is known, and saves nothing by itself."""
    partition = Partition("0", checkpoints, at(5))
    assert not partition.is_new(5)
    assert partition.is_new(6)
    partition.save()
    assert checkpoints.positions() == {}


def test_a_late_event_is_handled_and_sets_nothing_back(checkpoints):
    """An event that comes behind its successor is new, once, and the position stays the newest."""
    partition = Partition("0", checkpoints, at(5))
    partition.done(at(7))
    assert partition.is_new(6)
    partition.done(at(6))
    assert not partition.is_new(6)
    assert partition.position == at(7)


def test_an_endpoint_by_its_connection_string():
    """Namespace and name are read; without a key, Entra ID is asked."""
    text = "Endpoint=sb://ns.test/;SharedAccessKeyName=service;SharedAccessKey=a+b=;EntityPath=hub"
    found = eventhub.endpoint(text, "events.txt")
    assert (found.namespace, found.eventhub, found.keyless) == ("ns.test", "hub", False)
    assert eventhub.endpoint("Endpoint=sb://ns.test/;EntityPath=hub", "x").keyless


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Endpoint=sb://ns.test/",
        "EntityPath=hub",
        "HostName=h;SharedAccessKeyName=a;SharedAccessKey=b",
        "Endpoint=sb://ns.test/;SharedAccessKeyName=service;EntityPath=hub",
    ],
)
def test_a_connection_string_that_is_none(text):
    """Another kind of connection string is refused with the way to the right one."""
    with pytest.raises(InvalidInputError, match="Built-in endpoints") as caught:
        eventhub.endpoint(text, "events.txt")
    assert caught.value.code == "iothub_events"
