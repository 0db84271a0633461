"""Messages from the wire reach the room that takes them, and the controller's thread is awake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from sqlmodel import Session

from edgefleet_cloud.database import Database
from edgefleet_cloud.reports.ingest import Ingest
from edgefleet_cloud.rollouts.controller import Controller, Pace
from edgefleet_cloud.rollouts.driver import Driver
from edgefleet_cloud.rollouts.schemas import NewRollout
from edgefleet_cloud.rollouts.tables import RolloutRow
from edgefleet_cloud.uplink import Uplink
from edgefleet_shared import strict_json, topics
from edgefleet_shared.messages import Get
from tests.cloud.rollout_world import RolloutWorld
from tests.fakes.speaking_device import SpeakingDevice, slot_report

ASK = strict_json.encode(Get(1, 0))


def until(true: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


@pytest.fixture
def world(database: Database) -> Iterator[RolloutWorld]:
    """A speaking device that should run 1.0.0."""
    made = RolloutWorld(database)
    made.shelf.publish("1.0.0")
    made.shelf.publish("2.0.0")
    made.speaker = SpeakingDevice("cam-1")
    with database.write() as session:
        session.add(made.speaker.row(online=True))
    made.roll_out("1.0.0")
    made.greeted = []
    made.uplink = Uplink(
        made.transport,
        Ingest(database, made.events_log, [made.heard], made.clock),
        made.announcer,
        database,
        lambda _session, device: made.greeted.append(device),
    )
    yield made
    made.transport.stop()


def test_a_device_that_asks_is_answered(world: RolloutWorld):
    """The retained document is published again, same bytes."""
    before = world.document("cam-1")[0]
    world.broker.retained.clear()
    world.uplink.handle(topics.get("cam-1"), ASK)
    assert world.document("cam-1")[0].assignment == before.assignment
    assert world.greeted == ["cam-1"]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (topics.get("cam-1"), b"{"),
        (topics.get("cam-1"), b"x" * 5000),
        (topics.get("ghost"), ASK),
        (topics.desired("cam-1"), ASK),
        ("elsewhere/cam-1", ASK),
    ],
    ids=["garbled", "too long", "unknown device", "downwards", "foreign"],
)
def test_what_makes_no_sense_is_taken_and_answered_by_nothing(world, topic, payload):
    """It is logged and acknowledged: coming again would not make it better."""
    world.document("cam-1")
    sent = len(world.broker.sent)
    world.uplink.handle(topic, payload)
    world.document("cam-1")
    assert len(world.broker.sent) == sent + 1  # the document() above, nothing else


def test_a_sealed_report_moves_the_deployment(world: RolloutWorld):
    """From the device's signature to the rollout's end."""
    deployment = world.wanted("cam-1").id
    report = slot_report("1.0.0", deployment=deployment)
    sealed = world.speaker.reported(1, counter=1, slots={"digits": report})
    world.uplink.handle(topics.reported("cam-1"), sealed)
    assert world.wanted("cam-1").state == "succeeded"


def test_a_report_that_another_signed_moves_nothing(world: RolloutWorld):
    """It is refused with an event, and acknowledged."""
    report = slot_report("1.0.0", deployment=world.wanted("cam-1").id)
    forged = SpeakingDevice("cam-1").reported(1, slots={"digits": report})
    world.uplink.handle(topics.reported("cam-1"), forged)
    assert world.wanted("cam-1").state == "offered"
    assert world.events("report.refused")


class FlakyDriver(Driver):
    """Fails the first time it is asked."""

    asked = 0

    def due(self, session: Session, row: RolloutRow) -> bool:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("a turn that fails")
        return super().due(session, row)


def test_the_thread_acts_when_woken_and_outlives_failures(world: RolloutWorld):
    """With an interval of an hour a wake-up is enough, also after a turn that failed."""
    driver = FlakyDriver(world.slots, world.events_log, world.clock)
    controller = Controller(world.database, driver, lambda: None, Pace(3600, 30), world.clock)
    asyncio.run(controller.start())
    with world.database.write() as session:
        wish = NewRollout(model="digits", version="2.0.0")
        rollout = world.service.create(session, wish, "token/admin").id
    controller.wake("no such rollout")
    controller.wake(rollout)
    until(lambda: driver.asked == 1)
    controller.wake(rollout)
    until(lambda: world.states(rollout) == {"cam-1": "offered"})
    asyncio.run(controller.stop())
