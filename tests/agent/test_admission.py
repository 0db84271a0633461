"""Whether two versions fit into memory, and what happens where they do not."""

from __future__ import annotations

import json
import os
import threading

import msgspec
import pytest

from edgefleet_agent import admission, compose
from edgefleet_agent.admission import Memory, decide
from edgefleet_shared import dsse
from edgefleet_shared.errors import TrustError
from edgefleet_shared.messages import BATCH_TYPE, Policy
from tests.adversarial.device import Device
from tests.agent.gateways import UnixConnection, fp32
from tests.agent.running import Agent
from tests.agent.world import QUICK, World, until
from tests.models import linear

MB = 1024
ROOMY = Memory(needed=100 * MB, available=500 * MB, freed=90 * MB, reserve=64 * MB)
TIGHT = ROOMY._replace(available=120 * MB)
NOT_EVEN_ALONE = ROOMY._replace(available=60 * MB)


@pytest.mark.parametrize(
    ("policy", "memory", "serving", "way"),
    [
        ("auto", ROOMY, True, "overlap"),
        ("auto", TIGHT, True, "drain"),
        ("auto", NOT_EVEN_ALONE, True, "refuse"),
        ("auto", NOT_EVEN_ALONE, False, "refuse"),
        ("drain", ROOMY, True, "drain"),
        ("drain", ROOMY, False, "overlap"),
        ("drain", NOT_EVEN_ALONE, True, "refuse"),
        ("refuse", ROOMY, True, "overlap"),
        ("refuse", TIGHT, True, "refuse"),
        ("overlap", NOT_EVEN_ALONE, True, "overlap"),
    ],
)
def test_policy_and_memory_decide(policy, memory, serving, way):
    """Each policy over memory for two, for one and for none; the sentence has the numbers."""
    decision = decide(policy, memory, serving=serving)
    assert decision.way == way
    assert "100 MB" in decision.detail
    assert f"{memory.available // MB} MB" in decision.detail


def test_the_reserve_is_kept():
    """What fits only into the reserve does not fit."""
    exact = Memory(needed=100, available=164, freed=0, reserve=64)
    assert decide("auto", exact, serving=True).way == "overlap"
    assert decide("auto", exact._replace(available=163), serving=True).way != "overlap"


def test_a_cgroup_s_limit_counts_where_it_is_less(tmp_path):
    """The machine's memory, the group's and its parent's: the least, cache that can go included."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  900000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/edge/agent\n")
    assert admission.available_kb(proc, groups) == 900_000
    for path, limit, used, cache in (("edge/agent", "max", 5, 0), ("edge", 2**29, 2**28, 2**20)):
        (groups / path).mkdir(parents=True, exist_ok=True)
        (groups / path / "memory.max").write_text(f"{limit}\n")
        (groups / path / "memory.current").write_text(f"{used}\n")
        (groups / path / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert admission.available_kb(proc, groups) == (2**28 + 2**20) // 1024


def test_memory_of_processes_is_read():
    """This process has some; one that is gone has none."""
    assert admission.workers_kb([2**22 + 1]) == 0
    assert admission.workers_kb([os.getpid()]) > 1000


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def memory(monkeypatch):
    """What the machine has available, in kilobytes; the tests change it."""
    memory = {"available": 8 * 1024 * MB}
    monkeypatch.setattr(compose, "available_kb", lambda: memory["available"])
    return memory


@pytest.fixture
def agent(world, memory):
    """A running agent over a fake gateway."""
    agent = Agent(world).start()
    yield agent
    agent.close()


def serve(agent, slot):
    """Assign a version and wait until it serves."""
    agent.assign(slot)
    until(lambda: agent.transport.slot("digits").get("deployment") == slot.deployment)
    agent.reaches("succeeded")
    return slot


TIGHT_KB = 64 * MB + 24 * MB + 20
"""The reserve, a worker's own and less than what a test's package is taken to need."""


def test_without_memory_for_two_the_old_one_ends_first(world, agent, memory):
    """Held, loaded, flipped; the event says how long it may take, the receipt how long it took."""
    one = serve(agent, world.publish("1.0.0", body=b"w" * 20_000))
    memory["available"] = TIGHT_KB
    two = serve(agent, world.publish("2.0.0", body=b"v" * 20_000))
    seen = agent.gateway.seen
    assert seen.index("Hold") < len(seen) - seen[::-1].index("Load")
    assert agent.gateway.loaded() == {two.manifest: "active"}
    assert agent.record().previous.digest == one.manifest
    assert "Requests wait" in agent.event("swap_pause")["message"]
    assert "MB are available" in agent.event("drain")["message"]
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    assert (receipt["way"], receipt["to_digest"]) == ("drain", two.manifest)


def test_refuse_fails_before_anything_is_touched(world, agent, memory):
    """`no_memory`, with the numbers; the old version has not lost a moment."""
    one = serve(agent, world.publish("1.0.0"))
    memory["available"] = TIGHT_KB
    policy = msgspec.structs.replace(QUICK, swap="refuse")
    agent.assign(msgspec.structs.replace(world.publish("2.0.0"), policy=policy))
    report = agent.reaches("failed")
    assert report["reason"] == "no_memory"
    assert "MB" in report["detail"]
    assert agent.gateway.loaded() == {one.manifest: "active"}
    assert "Hold" not in agent.gateway.seen


def test_a_new_version_that_cannot_be_loaded_gives_the_old_one_back(world, agent, memory):
    """The old one ended for it, and comes back; requests waited and none was refused."""
    one = serve(agent, world.publish("1.0.0"))
    policy = msgspec.structs.replace(QUICK, swap="drain")
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=policy)
    agent.gateway.refuse["Load", two.manifest] = "out_of_memory"
    agent.assign(two)
    report = agent.reaches("rolled_back")
    assert report["reason"] == "out_of_memory"
    assert agent.gateway.loaded() == {one.manifest: "active"}
    assert agent.record().active.digest == one.manifest


def test_where_nothing_can_be_loaded_nobody_waits(world, agent, memory):
    """New and old refuse to load: the route goes, so that requests are answered, not held."""
    one = serve(agent, world.publish("1.0.0"))
    policy = msgspec.structs.replace(QUICK, swap="drain")
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=policy)
    for digest in (one.manifest, two.manifest):
        agent.gateway.refuse["Load", digest] = "load_failed"
    agent.assign(two)
    assert agent.reaches("rollback_failed")["active"] == ""
    assert agent.gateway.seen.index("Unroute") > agent.gateway.seen.index("Hold")


def test_a_drain_under_load_answers_every_request(world):
    """Four real clients: none fails, every answer is of one of the two, the pause is measured."""
    device = Device(world).start()
    answers: list[tuple[int, float]] = []
    over = threading.Event()

    def client() -> None:
        connection = UnixConnection(device.run_dir / "infer.sock")
        body = json.dumps(fp32("x", [1] * 4, [1, 4]))
        while not over.is_set():
            connection.request("POST", "/v2/models/digits/infer", body)
            response = connection.getresponse()
            found = json.loads(response.read())
            answers.append((response.status, found["outputs"][0]["data"][0]))
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    try:
        device.serve("1.0.0", 2.0)
        for one in clients:
            one.start()
        policy = Policy(probation_s=2, min_requests=0, drain_s=5, swap="drain")
        two = world.publish("2.0.0", body=linear(3.0))
        two = msgspec.structs.replace(two, policy=policy)
        device.assign(two)
        until(lambda: device.ended(two) == "succeeded", str(device.transport.slot("digits")))
        count = len(answers)
        until(lambda: len(answers) > count + 20, "answers after the swap")
    finally:
        over.set()
        for one in clients:
            one.join(20)
        receipts = until(lambda: len(r := device.transport.items("receipts")) == 2 and r)
        device.close()
    assert {status for status, _ in answers} == {200}
    assert {value for _, value in answers} == {8.0, 12.0}
    assert answers[-1] == (200, 12.0)
    receipt = receipts[-1]
    assert (receipt["failed"], receipt["way"]) == (0, "drain")
    assert receipt["pause_ms"] > 0
    assert receipt["gap_us"] > 0
    assert receipt["peak_memory_kb"] > 1000
    for when in ("before", "during", "after"):
        assert 0 < receipt[f"p50_us_{when}"] <= receipt[f"p99_us_{when}"]
    assert receipt in sealed_receipts(device)


def sealed_receipts(device) -> list[dict]:
    """Return the receipts of those batches that the device's own key has signed."""
    found = []
    for envelope in device.transport.sealed:
        try:
            payload = dsse.open_sealed(envelope, BATCH_TYPE, device.identity.signer.public_key)
        except TrustError:
            continue  # a reported document, or a signature that is not the device's
        batch = json.loads(payload)
        found += batch["items"] if batch["stream"] == "receipts" else []
    return found


def test_a_receipt_waits_over_a_restart_for_what_came_after(world, agent):
    """Agentd goes during probation: the receipt is still there, and has its third measurement."""
    serve(agent, world.publish("1.0.0"))
    long = Policy(probation_s=600, min_requests=0)
    two = msgspec.structs.replace(world.publish("2.0.0"), policy=long)
    agent.assign(two)
    agent.reaches("probation")
    until(lambda: agent.record().receipt is not None, "the pending receipt")
    assert len(agent.transport.items("receipts")) == 1
    agent.stop(end_gateway=False)
    agent.start()
    agent.reaches("probation")
    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.05):
            agent.gateway.answer("digits", 5)

    asking = threading.Thread(target=answer)
    asking.start()
    try:
        receipt = until(lambda: (r := agent.transport.items("receipts")) and r[-1])
    finally:
        over.set()
        asking.join()
    assert receipt["to_digest"] == two.manifest
    assert receipt["p50_us_after"] > 0
    assert agent.record().receipt is None
