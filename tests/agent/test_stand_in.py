"""Where two versions do not fit into memory, a smaller variant answers in between."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest

from edgefleet_agent import compose
from edgefleet_agent.admission import Memory, decide
from edgefleet_agent.stand_in import stand_in_digest
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry
from tests.adversarial.device import Device
from tests.agent.gateways import UnixConnection, fp32
from tests.agent.running import Agent
from tests.agent.world import QUICK, World, until
from tests.models import linear

MB = 1024
TIGHT_KB = 64 * MB + 24 * MB + 20
"""The reserve, a worker's own and less than what a test's package is taken to need."""
SMALL = b"s"
BIG = 4_000


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
    agent.gateway.memory_kb = 30 * MB
    yield agent
    agent.close()


def small(world, body: bytes = SMALL) -> FileEntry:
    """Put the stand-in's file into the world's blobs."""
    digest = sha256_digest(body)
    world.blobs[digest] = body
    return FileEntry("small.onnx", digest, len(body), "onnx")


def publish(world, version: str, *, body: bytes = b"", stand_in: bytes = SMALL, **policy):
    """Publish a version whose variant names a smaller one as its fallback."""
    entry = small(world, stand_in)

    def change(manifest):
        (cpu,) = manifest.variants
        other = msgspec.structs.replace(cpu, id="small", files=[entry])
        big = msgspec.structs.replace(cpu, fallback="small")
        return msgspec.structs.replace(manifest, variants=[big, other])

    slot = world.publish(version, body=body or version.encode() * BIG, change=change)
    return msgspec.structs.replace(slot, policy=msgspec.structs.replace(QUICK, **policy))


def plain(world, version: str, **policy):
    """Publish a version without a fallback."""
    slot = world.publish(version, body=version.encode() * BIG)
    return msgspec.structs.replace(slot, policy=msgspec.structs.replace(QUICK, **policy))


def serve(agent, slot):
    """Assign a version and wait until it serves."""
    agent.assign(slot)
    until(lambda: agent.transport.slot("digits").get("deployment") == slot.deployment)
    agent.reaches("succeeded")
    return slot


def stand_in_of(slot) -> str:
    """Return the digest under which the gateway knows a version's stand-in."""
    return stand_in_digest(slot.manifest, "small")


TIGHT = Memory(needed=100, available=150, freed=90, reserve=64, stand_in=20)


@pytest.mark.parametrize(
    ("policy", "memory", "serving", "way", "code"),
    [
        ("auto", TIGHT, True, "stand_in", ""),
        ("stand_in", TIGHT, True, "stand_in", ""),
        ("stand_in", TIGHT._replace(available=900), True, "stand_in", ""),
        ("stand_in", TIGHT._replace(available=900), False, "overlap", ""),
        ("drain", TIGHT, True, "drain", ""),
        ("refuse", TIGHT, True, "refuse", "no_memory"),
        ("auto", TIGHT._replace(available=900), True, "overlap", ""),
        ("auto", TIGHT._replace(stand_in=-1), True, "drain", ""),
        ("auto", TIGHT._replace(stand_in=87), True, "drain", ""),
        ("auto", TIGHT._replace(stand_in=77), True, "drain", ""),
        ("auto", TIGHT._replace(stand_in=76), True, "stand_in", ""),
        ("stand_in", TIGHT._replace(stand_in=-1), True, "refuse", "no_stand_in"),
        ("stand_in", TIGHT._replace(stand_in=87), True, "refuse", "no_stand_in"),
        ("auto", TIGHT._replace(available=70), True, "refuse", "no_memory"),
    ],
)
def test_policy_memory_and_stand_in_decide(policy, memory, serving, way, code):
    """The stand-in must fit beside the old version and, when that is gone, beside the new one."""
    decision = decide(policy, memory, serving=serving)
    assert decision.way == way
    assert not code or decision.code == code


def test_without_memory_for_two_the_smaller_variant_answers(world, agent, memory):
    """It is routed, the old one ends, the new one is loaded and routed; nothing is held."""
    one = serve(agent, publish(world, "1.0.0"))
    memory["available"] = TIGHT_KB
    two = serve(agent, publish(world, "2.0.0"))
    assert "Hold" not in agent.gateway.seen
    until(lambda: agent.gateway.loaded() == {two.manifest: "active"}, str(agent.gateway.loaded()))
    assert agent.record().previous.digest == one.manifest
    assert agent.event("stand_in")["data"]["variant"] == "small"
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    assert (receipt["way"], receipt["stand_in"], receipt["pause_ms"]) == ("stand_in", "small", 0)
    assert (receipt["from_digest"], receipt["to_digest"]) == (one.manifest, two.manifest)


@pytest.mark.parametrize(
    ("first", "second"), [(plain, publish), (publish, plain)], ids=["new", "old"]
)
def test_one_of_the_two_needs_a_fallback(world, agent, memory, first, second):
    """The new version's stands in where the old one has none; else the old one's does."""
    one = serve(agent, first(world, "1.0.0"))
    agent.gateway.variants.clear()
    serve(agent, second(world, "2.0.0", swap="stand_in"))
    assert [v for v in agent.gateway.variants if v.startswith("Load")] == ["Load small", "Load cpu"]
    assert agent.record().previous.digest == one.manifest


def test_a_policy_that_wants_a_stand_in_is_not_drained(world, agent, memory):
    """Without a fallback it fails with its own code, and the old version has lost nothing."""
    one = serve(agent, plain(world, "1.0.0"))
    agent.assign(plain(world, "2.0.0", swap="stand_in"))
    assert agent.reaches("failed")["reason"] == "no_stand_in"
    assert agent.gateway.loaded() == {one.manifest: "active"}


@pytest.mark.parametrize(("swap", "ends"), [("stand_in", "rolled_back"), ("auto", "succeeded")])
def test_a_stand_in_that_cannot_be_loaded_costs_no_more_than_itself(
    world, agent, memory, swap, ends
):
    """Asked for by name, the old version serves on as it did; else requests wait for a drain."""
    one = serve(agent, publish(world, "1.0.0"))
    memory["available"] = TIGHT_KB
    agent.gateway.refuse["Load", "small"] = "load_failed"
    two = publish(world, "2.0.0", swap=swap)
    agent.assign(two)
    until(lambda: agent.transport.slot("digits").get("deployment") == two.deployment)
    report = agent.reaches(ends)
    serves = one if ends == "rolled_back" else two
    assert report["reason"] == ("no_stand_in" if ends == "rolled_back" else "")
    assert ("Hold" in agent.gateway.seen) == (ends == "succeeded")
    assert agent.gateway.routed("digits") == serves.manifest


def test_while_the_old_version_comes_back_the_stand_in_answers(world, agent, memory):
    """The new one cannot be loaded: nothing is held, and the old one is loaded and routed again."""
    one = serve(agent, publish(world, "1.0.0"))
    memory["available"] = TIGHT_KB
    two = publish(world, "2.0.0")
    agent.gateway.refuse["Load", two.manifest] = "out_of_memory"
    agent.assign(two)
    assert agent.reaches("rolled_back")["reason"] == "out_of_memory"
    until(lambda: agent.gateway.loaded() == {one.manifest: "active"}, str(agent.gateway.loaded()))
    assert "Hold" not in agent.gateway.seen
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    assert (receipt["kind"], receipt["way"]) == ("rollback", "stand_in")


def test_where_neither_can_be_had_the_stand_in_answers_until_one_can(world, agent, memory):
    """Old and new refuse to load: the route stays, and the old one is back once it can be."""
    one = serve(agent, publish(world, "1.0.0"))
    memory["available"] = TIGHT_KB
    two = publish(world, "2.0.0")
    for slot in (one, two):
        agent.gateway.refuse["Load", slot.manifest] = "load_failed"
    agent.assign(two)
    agent.reaches("rollback_failed")
    assert agent.gateway.routed("digits") == stand_in_of(one)
    agent.gateway.refuse.clear()
    until(lambda: agent.gateway.loaded() == {one.manifest: "active"}, "the old version")


def test_a_bad_version_gives_way_to_a_stand_in_before_the_old_one_is_back(world, agent, memory):
    """In probation there is no memory for both either: the way back is as free of waiting."""
    one = serve(agent, publish(world, "1.0.0"))
    memory["available"] = TIGHT_KB
    two = publish(world, "2.0.0", probation_s=600, min_requests=10)
    agent.assign(two)
    agent.reaches("probation")
    assert agent.gateway.loaded() == {two.manifest: "active", stand_in_of(one): "standby"}
    agent.gateway.answer("digits", 50, nonfinite=50)
    assert agent.reaches("rolled_back")["reason"] == "nonfinite"
    until(lambda: agent.gateway.loaded() == {one.manifest: "active"}, str(agent.gateway.loaded()))
    assert "Hold" not in agent.gateway.seen


def test_under_load_a_stand_in_answers_every_request_at_once(world):
    """Four real clients while memory has room for one: each answer is of one of the three."""
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
            answers.append((response.status, found.get("outputs", [{"data": [0]}])[0]["data"][0]))
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    try:
        one = publish(world, "1.0.0", body=linear(2.0), stand_in=linear(5.0), drain_s=5)
        device.assign(one)
        until(lambda: device.ended(one) == "succeeded", str(device.transport.slot("digits")))
        for each in clients:
            each.start()
        two = publish(
            world, "2.0.0", body=linear(3.0), stand_in=linear(5.0), probation_s=1, drain_s=5,
            swap="stand_in",
        )  # fmt: skip
        device.assign(two)
        until(lambda: device.ended(two) == "succeeded", str(device.transport.slot("digits")))
        count = len(answers)
        until(lambda: len(answers) > count + 20, "answers after the swap")
    finally:
        over.set()
        for each in clients:
            each.join(20)
        receipts = until(lambda: len(r := device.transport.items("receipts")) == 2 and r)
        device.close()
    assert {status for status, _ in answers} == {200}
    assert {value for _, value in answers} == {8.0, 20.0, 12.0}
    assert answers[-1] == (200, 12.0)
    receipt = receipts[-1]
    assert (receipt["failed"], receipt["way"], receipt["stand_in"]) == (0, "stand_in", "small")
    assert 0 < receipt["stand_in_requests"] < receipt["requests_during"]
