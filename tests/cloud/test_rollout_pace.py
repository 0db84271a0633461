"""A large rollout goes as fast as the wire takes it; looking at it leaves time for others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from edgefleet_cloud.database import Database
from edgefleet_cloud.rollouts import driver
from edgefleet_cloud.rollouts.controller import Controller, Pace
from edgefleet_cloud.rollouts.schemas import NewRollout
from tests.brokers import until
from tests.cloud.rollout_world import RolloutWorld


@pytest.fixture
def world(database: Database, monkeypatch: pytest.MonkeyPatch) -> RolloutWorld:
    """Thirty devices, and room for ten documents, four of them a transaction."""
    monkeypatch.setattr(driver, "BATCH", 4)
    monkeypatch.setattr(driver, "ROOM", 10)
    made = RolloutWorld(database)
    made.shelf.publish("1.0.0")
    made.enroll(*(f"cam-{number}" for number in range(30)))
    return made


def test_devices_are_told_no_faster_than_the_wire_takes_it(world: RolloutWorld) -> None:
    """With the broker away the offers stop; a pause then holds; resumed, all are told."""
    world.broker.set_up(False)
    rollout = world.roll_out("1.0.0")
    assert Counter(world.states(rollout).values()) == {"offered": 12, "assigned": 18}
    world.settle()
    assert world.transport.pending == 12
    world.act(rollout, "pause")
    world.broker.set_up(True)
    until(lambda: world.transport.pending == 0)
    world.settle()
    assert Counter(world.states(rollout).values())["offered"] == 12
    world.act(rollout, "resume")

    def all_told() -> bool:
        world.settle()
        return set(world.states(rollout).values()) == {"offered"}

    until(all_told)


def test_a_way_that_is_full_holds_no_other_up(world: RolloutWorld) -> None:
    """While a hub takes nothing more, the devices on MQTT are told, and none of the hub's."""
    with world.database.write() as session:
        for number in range(0, 30, 2):
            row = world.devices.get(session, f"cam-{number}")
            row.way = "main"
            session.add(row)
    world.driver._waiting = lambda: {"": world.transport.pending, "main": 10}
    rollout = world.roll_out("1.0.0")

    def offered() -> set[str]:
        world.settle()
        return {name for name, state in world.states(rollout).items() if state == "offered"}

    until(lambda: offered() == {f"cam-{number}" for number in range(1, 30, 2)})


def test_reports_that_wake_it_on_and_on_do_not_keep_it_busy(world: RolloutWorld) -> None:
    """After each look it rests for some times as long, however often it is woken."""
    looks: list[float] = []

    class Slow(driver.Driver):
        def due(self, session, row) -> bool:
            began = time.monotonic()
            time.sleep(0.02)
            looks.append(time.monotonic() - began)
            return False

    with world.database.write() as session:
        wish = NewRollout(model="digits", version="1.0.0")
        rollout = world.service.create(session, wish, "token/admin").id
    slow = Slow(world.slots, world.events_log, world.clock)
    controller = Controller(world.database, slow, lambda: None, Pace(0.3), world.clock)
    asyncio.run(controller.start())
    began = time.monotonic()
    while time.monotonic() < began + 1.5:
        controller.wake(rollout)
        time.sleep(0.001)
    took = time.monotonic() - began
    asyncio.run(controller.stop())
    assert len(looks) >= 3
    assert sum(looks) < 0.5 * took
