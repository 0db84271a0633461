"""Reading a hub's registry makes right what events have not told."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest

from edgefleet_cloud.iothub.checkpoints import Source
from edgefleet_cloud.iothub.gaps import Gaps
from edgefleet_cloud.iothub.rest import Throttled
from edgefleet_cloud.iothub.sync import Needs, RegistrySync
from edgefleet_shared import twin
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.times import format_time
from tests.cloud.iothub_world import HUB, Between, HubWorld


@pytest.fixture
def world(database) -> HubWorld:
    """Return a hub with one enrolled device, `cam-1`, that was heard at start `boot-1`."""
    made = HubWorld(database)
    made.cam = made.add("cam-1", boot="boot-1")
    made.sync = sync_of(made)
    return made


def sync_of(world: HubWorld, **needs: object) -> RegistrySync:
    """Return a server's sync of the world's hub."""
    parts = {
        "registry": world.registry,
        "upstream": Between(world.hearing),
        "database": world.database,
        "events": world.log,
        "pace": world.told,
        "writer": world.writer,
    }
    return RegistrySync(world.config, Needs(**{**parts, **needs}), clock=world.clock)


def test_a_report_whose_event_is_lost_is_taken_from_the_twin(world):
    """A report of which no event can be had any more is found in the twin, and counted."""
    world.hub.report("cam-1", "", twin.report_patch(world.cam.reported(7)))
    world.forget_events()
    assert world.sync.once()
    assert world.row("cam-1").reported_seq == 7
    assert world.hub_row().repaired == 1
    world.sync.once()
    assert world.hub_row().repaired == 0
    assert world.handled == ["f1/cam-1/up/reported"]


def test_a_report_that_has_come_is_not_handled_again(world):
    """Where nothing was lost, the registry brings nothing."""
    world.hub.report("cam-1", "", twin.report_patch(world.cam.reported(7)))
    world.hear()
    world.handled.clear()
    world.sync.once()
    assert world.handled == []


def test_a_forged_report_is_refused_once(world):
    """What says to be newer is judged as ever, and looked at once only."""
    stranger = world.add("other").reported(9, device="cam-1")
    world.hub.report("cam-1", "", twin.report_patch(stranger))
    for _ in range(3):
        world.sync.once()
    assert world.row("cam-1").reported_seq == 0
    assert len(world.events("report.refused")) == 1


def test_the_whole_registry_is_read_page_by_page(world):
    """Every page is read, each within the tier's limit of queries, and the devices are counted."""
    for i in range(5):
        world.add(f"more-{i}")
    world.sync.once()
    assert world.registry.pages == 3
    assert world.told.heard.count(("query",)) == 3
    row = world.hub_row()
    assert (row.devices, row.synced) == (6, format_time(world.now))


def test_a_throttled_page_is_asked_for_again(world):
    """A 429 in the middle is waited out as the hub says, and the reading goes on where it was."""
    for i in range(3):
        world.add(f"more-{i}")

    def throttle(number: int) -> None:
        if number == 2:
            raise Throttled("429", 0.01)

    world.registry.before_page = throttle
    world.sync.once()
    assert world.registry.pages == 3
    assert world.hub_row().devices == 4


def test_what_breaks_off_is_due(world):
    """A reading that the hub's absence ends is not taken for one, and is soon begun anew."""

    def away(_number: int) -> None:
        raise UnavailableError("The hub does not answer.", code="iothub")

    world.registry.before_page = away
    with pytest.raises(UnavailableError):
        world.sync.once()
    row = world.hub_row()
    assert (row.due, row.synced, row.owner) == (True, "", "")


def test_a_status_that_is_wrong_is_noted(world):
    """What the registry says against our state is told to who writes there."""
    world.add("gone", state="decommissioned")
    world.add("out", state="revoked")
    world.hub.registry.update("cam-1", status="disabled")
    world.sync.once()
    assert world.writer.told == {"cam-1": "disabled", "out": "enabled", "gone": "enabled"}


def test_a_status_that_is_right_is_left(world):
    """Nothing is told of a device of which the registry says what we do."""
    world.sync.once()
    assert world.writer.told == {}


def test_strangers_are_told_and_forgotten(world):
    """A device that is not ours is told once, and forgotten when the hub forgets it."""
    world.hub.registry.create("stranger")
    world.sync.once()
    world.now += timedelta(seconds=1)
    world.sync.once()
    assert world.at_hub("stranger").unknown
    assert len(world.events("iothub.devices_unknown")) == 1
    world.hub.registry.delete("stranger")
    world.now += timedelta(seconds=1)
    world.sync.once()
    assert world.at_hub("stranger") is None


def test_a_device_that_should_be_there_is_missed(world):
    """One that speaks by the hub and is not in its registry is told, also to who writes there."""
    world.hear_report("cam-1")
    world.hub.registry.delete("cam-1")
    world.sync.once()
    assert world.at_hub("cam-1").missing
    assert len(world.events("iothub.devices_missing")) == 1
    assert world.writer.told == {"cam-1": "missing"}


def test_who_has_never_spoken_is_not_missed(world):
    """A device that has just enrolled is being put into the registry: nothing to be alarmed at."""
    world.hub.registry.delete("cam-1")
    world.sync.once()
    assert world.events("iothub.devices_missing") == []


def test_a_late_index_misses_nobody(world):
    """A query's index is some minutes late: the registry itself has the last word."""
    world.hear_report("cam-1")
    world.registry.page = lambda *_args: ([], "")
    world.sync.once()
    assert world.events("iothub.devices_missing") == []


def test_a_connection_that_ended_unheard_shows_as_offline(world):
    """A device that we take to be online and the hub does not is offline, unless it spoke since."""
    world.add("cam-2", boot="b", online=True, last_seen=format_time(world.now))
    world.add("cam-3", boot="b", online=True, last_seen=format_time(world.now - timedelta(hours=1)))
    world.add("cam-4", boot="b", online=True, way="", last_seen=format_time(world.now))
    world.sync.once()
    online = [device for device in ("cam-2", "cam-3", "cam-4") if world.row(device).online]
    assert online == ["cam-2", "cam-4"]


def test_a_modules_report_is_read_too(world):
    """Where a module speaks for its device, the report is taken from the module's twin."""
    world.config = type(world.config)(
        name=HUB, host=world.config.host, events_file="none", module="edgefleet"
    )
    world.hub.registry.create("cam-1", "edgefleet")
    world.hub.report("cam-1", "edgefleet", twin.report_patch(world.cam.reported(3)))
    sync_of(world).once()
    assert world.row("cam-1").reported_seq == 3


def test_one_server_reads_at_a_time(world):
    """While one reads, another does not; a lease that ran out is taken over."""
    entered, go_on = threading.Event(), threading.Event()

    def stay(_number: int) -> None:
        entered.set()
        assert go_on.wait(20)

    world.registry.before_page = stay
    first = threading.Thread(target=world.sync.once)
    first.start()
    assert entered.wait(20)
    assert not sync_of(world).once()
    go_on.set()
    first.join()
    assert sync_of(world).once()


def test_a_gap_has_the_registry_read_soon(world):
    """Lost events make the registry due and are told in the log; one reading settles it."""
    gaps = Gaps(HUB, world.database, world.log)
    gaps.lost("0", 12)
    gaps.lost("1", None)
    assert world.hub_row().due
    assert world.events("iothub.events_lost")[0].data == {"partition": "0", "events": 12}
    assert len(world.events("iothub.events_anew")) == 1
    world.sync.once()
    assert not world.hub_row().due


def test_a_new_endpoint_is_told_and_has_the_registry_read(world):
    """The first endpoint is nothing to tell; another one, as after a failover, is."""
    gaps = Gaps(HUB, world.database, world.log)
    for namespace in ("east", "east", "west"):
        gaps.reads_at(Source(HUB, namespace, "hub-1", "$Default"))
    (told,) = world.events("iothub.events_moved")
    assert told.data == {"before": "east/hub-1", "after": "west/hub-1"}
    assert world.hub_row().due


def test_it_runs_beside_the_api(world):
    """As a background service it reads the registry at once, and stops when it is told."""

    async def run() -> None:
        await world.sync.start()
        deadline = time.monotonic() + 20
        while not (world.hub_row() and world.hub_row().synced):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await world.sync.stop()

    asyncio.run(run())
