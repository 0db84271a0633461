"""kill -9 and power cuts in every state: the old version or the new, never neither."""

from __future__ import annotations

import msgspec
import pytest

from edgefleet_agent import durable
from edgefleet_shared import strict_json
from edgefleet_shared.messages import Policy
from edgefleet_shared.states import DeploymentState
from tests.agent.world import QUICK, World, until
from tests.faults.device import Device, Witness

WATCHED = Policy(probation_s=600, min_requests=10, standby_s=0, drain_s=0)


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device that serves 1.0.0."""
    device = Device(world)
    device.start()
    one = world.publish("1.0.0")
    device.assign(one)
    device.reaches(one.deployment, "succeeded")
    device.one = one
    yield device
    device.close()


def hold_downloading(device):
    """The blob server stops after 10 000 bytes."""
    device.world.server.hold_at = 10_000


def let_downloading(device):
    """The blob server sends all from now on."""
    device.world.server.hold_at = None


def hold(name):
    """Return what makes the gateway wait before it does a request of that name."""
    return lambda device: device.gateway.hold.add(name)


def let(name):
    """Return what lets such a request be done after all."""
    return lambda device: device.gateway.let_go(name)


def lose(name):
    """Return what loses such a request: it is never done."""

    def lost(device):
        device.gateway.lose.add(name)
        device.gateway.let_go(name)
        device.gateway.lose.clear()

    return lost


def rewrite(state):
    """Return what moves the journal to a state too short to be met by a watcher."""

    def written(device):
        device.gateway.let_go("Prove")
        path = device.state / "journal.json"
        document = device.document()
        record = document.slots["digits"]
        deployment = msgspec.structs.replace(record.deployment, state=state)
        slots = {"digits": msgspec.structs.replace(record, deployment=deployment)}
        document = msgspec.structs.replace(document, slots=slots)
        durable.atomic_write(path, strict_json.encode(document))

    return written


CASES = {
    "downloading": ("downloading", hold_downloading, let_downloading),
    "verifying": ("preparing", hold("Prove"), rewrite(DeploymentState.VERIFYING)),
    "preparing": ("preparing", hold("Prove"), let("Prove")),
    "preparing, loading": ("preparing", hold("Load"), let("Load")),
    "staged": ("preparing", hold("Prove"), rewrite(DeploymentState.STAGED)),
    "swapping, not flipped": ("swapping", hold("Flip"), lose("Flip")),
    "swapping, flipped": ("swapping", hold("Flip"), let("Flip")),
}


@pytest.mark.parametrize("power", ["agentd", "everything"])
@pytest.mark.parametrize("case", CASES)
def test_killed_before_the_mark_of_the_swap(world, device, case, power):
    """Whatever was under way is taken up again, and ends in the new version."""
    state, before, after = CASES[case]
    two = world.publish("2.0.0")
    before(device)
    device.assign(two)
    device.reaches(two.deployment, state)
    if state == "swapping":
        until(lambda: device.gateway.seen[-1] == "Flip")
    if power == "agentd":
        device.kill()
        after(device)
    else:
        device.cut_power()
        after(device)
    with Witness(device) as witness:
        device.start()
        device.reaches(two.deployment, "succeeded")
        until(lambda: device.gateway.routed("digits") == two.manifest)
    # After a power cut the gateway starts with nothing; agentd alone never leaves a gap.
    empty = {""} if power == "everything" else set()
    assert witness.seen <= {device.one.manifest, two.manifest} | empty
    assert device.record().active.digest == two.manifest
    assert device.record().previous.digest == device.one.manifest


@pytest.mark.parametrize("power", ["agentd", "everything"])
def test_killed_in_probation(world, device, power):
    """The new version serves on, the old one stands by again, and probation begins anew."""
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=WATCHED)
    device.assign(two)
    device.reaches(two.deployment, "probation")
    device.kill() if power == "agentd" else device.cut_power()
    device.start()
    both = {two.manifest: "active", device.one.manifest: "standby"}
    both_idle = {two.manifest: "active", device.one.manifest: "idle"}
    until(lambda: device.gateway.loaded() in (both, both_idle), str(device.gateway.loaded()))
    device.gateway.answer("digits", 20, nonfinite=1)
    device.reaches(two.deployment, "rolled_back")
    assert device.gateway.routed("digits") == device.one.manifest


@pytest.mark.parametrize("power", ["agentd", "everything"])
@pytest.mark.parametrize("flip", ["done", "lost"])
def test_killed_while_rolling_back(world, device, flip, power):
    """A rollback that was begun is ended after the restart, whether the route had moved or not."""
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=WATCHED)
    device.assign(two)
    device.reaches(two.deployment, "probation")
    device.gateway.hold.add("Flip")
    device.gateway.answer("digits", 20, nonfinite=1)
    device.reaches(two.deployment, "rolling_back")
    until(lambda: device.gateway.seen[-1] == "Flip")
    device.kill() if power == "agentd" else device.cut_power()
    (let if flip == "done" else lose)("Flip")(device)
    device.start()
    device.reaches(two.deployment, "rolled_back")
    until(lambda: device.gateway.routed("digits") == device.one.manifest)
    assert device.record().active.digest == device.one.manifest
    assert device.record().previous is None


def test_a_fetch_killed_half_way_goes_on_where_it_was(world, device):
    """What had arrived is hashed and kept; the rest comes by Range."""
    two = world.publish("2.0.0", body=b"0123456789abcdef" * 16_384)
    hold_downloading(device)
    world.server.hold_at = 200_000
    device.assign(two)
    partials = device.state / "store" / "partial"
    until(lambda: any(p.stat().st_size >= 190_000 for p in partials.iterdir()))
    device.kill()
    size = next(partials.iterdir()).stat().st_size
    let_downloading(device)
    device.start()
    device.reaches(two.deployment, "succeeded")
    assert world.server.ranges[-1] == f"bytes={size}-"


def test_nothing_is_fetched_twice_after_a_kill(world, device):
    """Blobs that are complete stay; only the manifest of the variant is looked at again."""
    two = world.publish("2.0.0")
    device.gateway.hold.add("Prove")
    device.assign(two)
    device.reaches(two.deployment, "preparing")
    device.kill()
    asked = len(world.server.ranges)
    device.gateway.let_go("Prove")
    device.start()
    device.reaches(two.deployment, "succeeded")
    assert len(world.server.ranges) == asked


def test_numbers_of_the_outbox_never_repeat_and_never_skip(world, device):
    """Ten kills at random moments: every event arrives, in order, each number once or as itself."""
    for version in range(2, 7):
        slot = world.publish(f"{version}.0.0")
        device.assign(slot)
        for _ in range(2):
            seq = device.document().seq
            until(lambda seq=seq: device.document().seq > seq + 1)
            device.kill()
            device.start()
        device.reaches(slot.deployment, "succeeded")
    until(lambda: device.batches("receipts")[-1]["items"][-1]["to_version"] == "6.0.0")
    for stream in ("events", "receipts"):
        found: dict[int, object] = {}
        for batch in device.batches(stream):
            for seq, item in zip(batch["seqs"], batch["items"], strict=True):
                assert found.setdefault(seq, item) == item
        assert sorted(found) == list(range(1, len(found) + 1))


def test_the_gateway_serves_on_while_agentd_is_dead(world, device):
    """SIGKILL of agentd moves no route and ends no worker."""
    device.kill()
    assert device.gateway.loaded() == {device.one.manifest: "active"}
    device.start()
    two = world.publish("2.0.0")
    device.assign(msgspec.structs.replace(two, policy=QUICK))
    device.reaches(two.deployment, "succeeded")


@pytest.mark.parametrize("name", ["floors-a.json", "floors-b.json"])
def test_one_torn_floor_file_costs_nothing(world, device, name):
    """The other slot stands, at any length of the torn one."""
    device.kill()
    path = device.state / "trust" / name
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data[: len(data) // 2])
    device.start()
    two = world.publish("2.0.0")
    device.assign(two)
    device.reaches(two.deployment, "succeeded")
