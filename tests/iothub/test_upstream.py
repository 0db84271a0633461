"""A hub's events through azure-eventhub as it is: in order, until it works, nothing lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from edgefleet_cloud.iothub.event_tables import IotHubPartitionRow
from edgefleet_provisioning.iothub_double.state import Azure
from edgefleet_shared import twin
from edgefleet_shared.errors import UnavailableError
from tests.iothub.upstream_world import Taken, UpstreamWorld, until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[UpstreamWorld]:
    """Return a hub whose events are served, with a device in each of four partitions."""
    made = UpstreamWorld(tmp_path)
    yield made
    made.close()


def numbered(first: int, last: int) -> list[bytes]:
    """Return bodies that tell their order."""
    return [str(i).encode() for i in range(first, last)]


def sent(world: UpstreamWorld, first: int, last: int) -> dict[str, list[bytes]]:
    """Have all devices send by turns; return what each has sent."""
    for body in numbered(first, last):
        for device in world.devices:
            world.send(device, body)
    return {device: numbered(0, last) for device in world.devices}


def test_everything_comes_in_order_and_once_over_a_restart(world):
    """Each device's messages come in order; a server that was stopped goes on where it was."""
    taken = Taken()
    expected = sent(world, 0, 60)
    first = world.upstream(taken)
    until(lambda: taken.count == 240)
    assert first.connected
    first.stop()
    assert not first.connected
    expected = sent(world, 60, 80)
    world.upstream(taken)
    until(lambda: taken.count >= 320)
    assert taken.bodies == expected


def test_what_must_wait_holds_up_its_partition_alone(world, caplog):
    """What cannot be taken now comes again before what is behind it; what breaks is dropped."""
    taken, open_again, tries = Taken(), threading.Event(), []
    slow, broken, *_others = world.devices

    def refuse(device: str, body: bytes) -> None:
        if (device, body) == (slow, b"3") and not open_again.is_set():
            raise UnavailableError("The database is busy.")
        if (device, body) == (broken, b"1"):
            tries.append(body)
            raise ValueError(body)

    taken.refuse = refuse
    expected = sent(world, 0, 20)
    expected[broken].remove(b"1")
    upstream = world.upstream(taken)
    until(
        lambda: all(taken.bodies.get(each) == expected[each] for each in world.devices[1:]),
        "what the other devices sent",
    )
    assert taken.bodies[slow] == numbered(0, 3)
    assert len(tries) == 5
    assert "is dropped: it breaks its handler" in caplog.text
    until(lambda: any(lag.events == 17 for lag in upstream.lags), "the lag of the partition")
    open_again.set()
    until(lambda: taken.count == 79)
    assert taken.bodies == expected


def test_cut_lines_lose_nothing(world):
    """Connections that break in the middle are mended, and each message is handled once."""
    taken = Taken()
    upstream = world.upstream(taken)
    for i in range(2):
        expected = sent(world, i * 20, i * 20 + 20)
        until(lambda least=i * 80 + 10: taken.count > least)
        world.endpoint.server.cut()
    until(lambda: taken.count >= 160)
    assert {device: sorted(set(bodies), key=int) for device, bodies in taken.bodies.items()} == (
        expected
    )
    until(lambda: upstream.connected, "the connection")


def test_servers_share_the_partitions(world):
    """Two servers have two partitions each; what one leaves, the other takes."""
    mine, other = Taken(), Taken()
    first = world.upstream(mine)
    until(lambda: sum(lag.here for lag in first.lags) == 4, "all partitions at one server")
    second = world.upstream(other)

    def shares() -> list[int]:
        owners = [row.owner for row in _partitions(world) if row.owner]
        return [owners.count(each) for each in sorted(set(owners))]

    until(lambda: shares() == [2, 2], "sharing")
    sent(world, 0, 10)
    until(lambda: set(mine.bodies) | set(other.bodies) == set(world.devices))
    until(lambda: mine.count + other.count >= 40)
    second.stop()
    expected = sent(world, 10, 20)
    everything = lambda: {  # noqa: E731
        device: sorted({*mine.bodies.get(device, []), *other.bodies.get(device, [])}, key=int)
        for device in world.devices
    }
    until(lambda: everything() == expected, "what was left")


def test_a_server_that_is_killed_loses_nothing(world, tmp_path):
    """Of two servers one is killed with -9: the other takes its partitions and what it had."""
    out, mine = tmp_path / "heard.txt", Taken()
    child = subprocess.Popen([
        sys.executable, "-m", "tests.iothub.upstream_child", world.path, world.events_file, out
    ])  # fmt: skip
    try:
        expected = sent(world, 0, 150)
        until(lambda: out.exists() and out.read_text().count("\n") > 60, "the other's reading")
        world.upstream(mine)
        until(lambda: mine.count > 20, "sharing")
    finally:
        child.kill()
        child.wait()
    heard: dict[str, set[bytes]] = {device: set() for device in world.devices}
    for line in out.read_text().splitlines():
        device, body = line.split()
        heard[device].add(body.encode())

    def everything() -> dict[str, list[bytes]]:
        return {
            device: sorted(heard[device] | set(mine.bodies.get(device, [])), key=int)
            for device in world.devices
        }

    until(lambda: everything() == expected, "all that was sent")
    assert all(bodies == sorted(bodies, key=int) for bodies in mine.bodies.values())


def test_another_endpoint_is_read_from_its_beginning(world):
    """After a failover the file names another endpoint: it is read from its oldest event."""
    taken = Taken()
    world.send(world.devices[0], b"0")
    world.upstream(taken)
    until(lambda: taken.count == 1)
    west = Azure().add("fleet-w.azure-devices.test")
    west.registry.create(world.devices[0])
    west.send_event(world.devices[0], "", b"1", twin.message_properties("presence"))
    world.point_to(world.another_endpoint(west))
    until(lambda: taken.count == 2)
    assert taken.bodies[world.devices[0]] == [b"0", b"1"]
    until(lambda: world.fleet.hub_row().due, "the registry to be due")
    assert len(world.fleet.events("iothub.events_moved")) == 1


def test_a_stream_that_begins_anew_is_read_anew(world):
    """A position that is beyond the end of a stream, as after a restore, does not wedge us."""
    taken = Taken()
    sent(world, 0, 10)
    world.upstream(taken)
    until(lambda: taken.count == 40)
    last = [world.hub.log.last(partition).sequence for partition in range(4)]
    until(lambda: [row.sequence for row in _partitions(world)] == last, "all positions on disk")
    anew = Azure().add("fleet-a.azure-devices.test")
    anew.registry.create(world.devices[0])
    anew.send_event(world.devices[0], "", b"anew", twin.message_properties("presence"))
    world.endpoint.serve(anew)
    world.endpoint.server.cut()
    until(lambda: taken.bodies[world.devices[0]][-1] == b"anew")
    until(lambda: world.fleet.events("iothub.events_anew"), "the word in the log")


def test_what_retention_took_is_told(world):
    """Events that were dropped before they were read are counted, and the registry is due."""
    taken = Taken()
    sent(world, 0, 5)
    first = world.upstream(taken)
    until(lambda: taken.count == 20)
    first.stop()
    sent(world, 5, 15)
    kept = world.hub.log._kept[0]
    for _ in range(8):
        kept.popleft()
    world.upstream(taken)
    until(lambda: taken.count >= 57)
    assert taken.bodies[world.devices[0]] == numbered(0, 5) + numbered(8, 15)
    (told,) = world.fleet.events("iothub.events_lost")
    assert told.data == {"partition": "0", "events": 3}
    assert world.fleet.hub_row().due


def _partitions(world: UpstreamWorld) -> list[IotHubPartitionRow]:
    with world.database.read() as session:
        return list(session.exec(select(IotHubPartitionRow)))
