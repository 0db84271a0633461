"""From a desired document to a served version and back, agentd whole; gateway and network short."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from edgefleet_agent.ipc import control
from edgefleet_shared.messages import Policy
from edgefleet_shared.states import DEPLOYMENT, DeploymentState
from tests.agent.running import Agent
from tests.agent.world import QUICK, World, a_variant, until

WATCHED = Policy(probation_s=30, min_requests=10, standby_s=0, drain_s=0)


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running agent that serves nothing yet."""
    agent = Agent(world).start()
    yield agent
    agent.close()


def with_policy(slot, policy):
    """Return the same assignment under another policy."""
    return msgspec.structs.replace(slot, policy=policy)


def succeed(agent, slot):
    """Assign a version and wait until it serves."""
    agent.assign(slot)
    until(
        lambda: (
            agent.transport.slot(slot.model).get("deployment") == slot.deployment
            and agent.transport.slot(slot.model)["state"] == "succeeded"
        ),
        f"success of {slot.version}: {agent.transport.slot(slot.model)}",
    )
    return slot


def test_a_version_travels_to_success_by_the_table(world, agent):
    """Every state that the journal passes follows from the one before."""
    slot = succeed(agent, world.publish("1.0.0"))
    assert agent.gateway.routed("digits") == slot.manifest
    assert agent.gateway.files == [world.blobs[d] for d in agent.record().active.blobs]
    names = {s.value for s in DeploymentState}
    states = [DeploymentState(e["code"]) for e in agent.transport.items("events")
              if e["slot"] and e["code"] in names]  # fmt: skip
    assert states[-1] is DeploymentState.SUCCEEDED
    follows = {(before, after) for (before, _), after in DEPLOYMENT.items()}
    assert all(pair in follows for pair in pairwise(states))
    report = agent.transport.slot("digits")
    assert report["active_version"] == "1.0.0"
    assert report["bytes_done"] == report["bytes_total"] > 0


def test_a_swap_leaves_a_receipt_and_the_old_version_is_released(world, agent):
    """From which to which digest, and why, stands in the receipts; the old worker is gone."""
    one = succeed(agent, world.publish("1.0.0"))
    two = succeed(agent, world.publish("2.0.0"))
    until(lambda: agent.gateway.loaded() == {two.manifest: "active"})
    receipts = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r)
    assert [(r["kind"], r["from_digest"], r["to_digest"]) for r in receipts] == [
        ("activate", "", one.manifest),
        ("activate", one.manifest, two.manifest),
    ]
    assert agent.record().previous.digest == one.manifest


def test_the_standby_stays_warm_as_long_as_the_policy_says(world, agent):
    """With standby_s the old worker is still loaded after success."""
    one = succeed(agent, world.publish("1.0.0"))
    keep = msgspec.structs.replace(QUICK, standby_s=600)
    two = succeed(agent, with_policy(world.publish("2.0.0"), keep))
    assert agent.gateway.loaded() == {one.manifest: "standby", two.manifest: "active"}


@pytest.mark.parametrize(
    ("answers", "trigger"),
    [
        ({"nonfinite": 1}, "nonfinite"),
        ({"server_errors": 20}, "error_rate"),
        ({"compute_ns": 50_000_000}, "latency"),
        ({"crashes": 1}, "crashes"),
    ],
)
def test_a_version_that_misbehaves_in_service_is_sent_back(world, agent, answers, trigger):
    """NaN, errors, slowness and crashes each end in the old version, without the cloud."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.gateway.answer("digits", 100)
    two = with_policy(world.publish("2.0.0"), WATCHED)
    agent.assign(two)
    agent.reaches("probation")
    agent.transport.disconnect()
    agent.gateway.answer("digits", 60, **answers)
    until(lambda: agent.record().deployment.state is DeploymentState.ROLLED_BACK)
    assert agent.gateway.routed("digits") == one.manifest
    agent.transport.connect()
    report = agent.reaches("rolled_back")
    assert (report["reason"], report["verdict"], report["active_version"]) == (
        trigger, "fail", "1.0.0",
    )  # fmt: skip
    kinds = until(lambda: len(r := agent.transport.items("receipts")) == 3 and r)
    assert (kinds[-1]["kind"], kinds[-1]["trigger"]) == ("rollback", trigger)


def test_a_rolled_back_deployment_is_never_tried_again(world, agent):
    """The same deployment in a newer assignment changes nothing."""
    succeed(agent, world.publish("1.0.0"))
    two = with_policy(world.publish("2.0.0"), WATCHED)
    agent.assign(two)
    agent.reaches("probation")
    agent.gateway.answer("digits", 10, nonfinite=1)
    agent.reaches("rolled_back")
    proved = agent.gateway.seen.count("Prove")
    agent.assign(two)
    until(lambda: agent.transport.reported[-1]["counter"] == world.counter)
    assert agent.gateway.seen.count("Prove") == proved
    assert agent.transport.slot("digits")["state"] == "rolled_back"


def test_a_version_that_failed_its_probation_is_no_yardstick(world, agent):
    """Its rollback failed, so it serves; the next one is judged by the policy, not beside it."""
    one = world.publish("1.0.0")
    agent.assign(one)
    agent.reaches("succeeded")
    agent.gateway.refuse |= {(name, one.manifest): "load_failed" for name in ("Flip", "Load")}
    for version, end in (("2.0.0", "rollback_failed"), ("3.0.0", "rolled_back")):
        agent.assign(msgspec.structs.replace(world.publish(version), policy=WATCHED))
        until(lambda v=version: agent.transport.slot("digits").get("target_version") == v)
        agent.reaches("probation")
        agent.gateway.answer("digits", 200, nonfinite=200)
        assert agent.reaches(end)["state"] == end
        agent.gateway.refuse.clear()


def test_a_first_version_that_misbehaves_leaves_nothing(world, agent):
    """There is nothing to go back to, so nothing is served."""
    agent.assign(with_policy(world.publish("1.0.0"), WATCHED))
    agent.reaches("probation")
    agent.gateway.answer("digits", 10, nonfinite=3)
    assert agent.reaches("rolled_back")["active"] == ""
    assert agent.gateway.routed("digits") == ""


@pytest.mark.parametrize("request_name", ["Prove", "Load"])
def test_a_model_that_fails_its_proof_never_touches_the_old_one(world, agent, request_name):
    """A golden mismatch ends in `failed` while the old version serves."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.gateway.refuse[request_name, ""] = "golden_mismatch"
    agent.assign(world.publish("2.0.0"))
    report = agent.reaches("failed")
    assert report["reason"] == "golden_mismatch"
    assert agent.gateway.routed("digits") == one.manifest


def test_a_package_for_other_hardware_is_not_touched(world, agent):
    """No variant fits: the state says so, and no weight is fetched."""

    def elsewhere(manifest):
        variant = a_variant("sha256:" + "0" * 64, 5, hardware=["rpi5"])
        return msgspec.structs.replace(manifest, variants=[variant])

    agent.assign(world.publish("1.0.0", change=elsewhere))
    assert agent.reaches("no_compatible_variant")["reason"] == "no_compatible_variant"
    assert len(world.server.ranges) == 1


def test_two_variants_that_fit_are_refused(world, agent):
    """Nobody but the publisher chooses between equals that no golden vectors tell apart."""

    def doubled(manifest):
        first = manifest.variants[0]
        second = msgspec.structs.replace(first, id="cpu-2")
        return msgspec.structs.replace(manifest, variants=[first, second])

    agent.assign(world.publish("1.0.0", change=doubled))
    assert agent.reaches("rejected")["reason"] == "ambiguous_variant"


def test_a_manifest_that_is_none_is_rejected(world, agent):
    """Genuine bytes under a genuine name, which are no manifest of that version."""
    slot = world.publish("1.0.0", change=lambda m: msgspec.structs.replace(m, version="1.0.1"))
    agent.assign(slot)
    assert agent.reaches("rejected")["reason"] == "disagree"


def test_what_runs_already_is_not_deployed_again(world, agent):
    """A new deployment of the active digest ends at once."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.assign(msgspec.structs.replace(one, deployment="another"))
    agent.reaches("already_current")
    assert agent.gateway.seen.count("Flip") == 1


def test_a_newer_assignment_supersedes_one_under_way(world, agent):
    """While the first still loads, the second takes over."""
    agent.gateway.hold.add("Prove")
    agent.assign(world.publish("1.0.0"))
    until(lambda: "Prove" in agent.gateway.seen)
    two = world.publish("2.0.0")
    agent.assign(two)
    until(lambda: agent.transport.reported[-1]["counter"] == world.counter)
    agent.gateway.let_go("Prove")
    until(lambda: agent.gateway.routed("digits") == two.manifest)
    assert agent.reaches("succeeded")["deployment"] == two.deployment
    agent.event("superseded")


def test_going_back_during_probation_is_a_rollback_at_once(world, agent):
    """The cloud asks for the previous version: nobody waits for probation to end."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.assign(with_policy(world.publish("2.0.0"), WATCHED))
    agent.reaches("probation")
    agent.assign(msgspec.structs.replace(one, deployment="back"))
    assert agent.reaches("already_current")["active"] == one.manifest
    agent.event("rolled_back")


def test_a_third_version_ends_a_probation_without_a_verdict(world, agent):
    """Probation is cut short as inconclusive, and the third version goes on from there."""
    agent.assign(with_policy(world.publish("1.0.0"), WATCHED))
    agent.reaches("probation")
    two = succeed(agent, world.publish("2.0.0"))
    assert agent.gateway.routed("digits") == two.manifest


def test_stop_unroutes_a_slot(world, agent):
    """Mode `stop` ends serving, says so, and a later `run` brings it back."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.assign(msgspec.structs.replace(one, mode="stop", deployment="stop-1"))
    until(lambda: agent.transport.slot("digits")["deployment"] == "stop-1")
    assert agent.reaches("succeeded")["active"] == ""
    assert agent.gateway.routed("digits") == ""
    until(lambda: agent.transport.items("receipts")[-1]["kind"] == "stop")
    succeed(agent, msgspec.structs.replace(one, deployment="again"))


def test_a_slot_that_is_not_named_is_left_alone():
    """Two models live side by side; an assignment of one does not touch the other."""
    world = World(models=("digits", "audio"))
    agent = Agent(world).start()
    try:
        one = succeed(agent, world.publish("1.0.0"))
        two = succeed(agent, world.publish("1.0.0", model="audio"))
        assert agent.gateway.loaded() == {one.manifest: "active", two.manifest: "active"}
    finally:
        agent.close()
        world.close()


def test_a_gateway_that_dies_is_filled_again_from_disk(world, agent):
    """A fresh gateway gets the active version back, from verified blobs, with a receipt."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.gateway.close()
    agent.event("gateway_down")
    agent.new_gateway()
    until(lambda: agent.gateway.routed("digits") == one.manifest)
    until(lambda: agent.transport.items("receipts")[-1]["kind"] == "restore")
    assert agent.transport.slot("digits")["state"] == "succeeded"


def test_a_quarantined_version_gives_way_to_the_previous_one(world, agent):
    """After success too: three crashes, and the previous version serves again."""
    one = succeed(agent, world.publish("1.0.0"))
    two = succeed(agent, world.publish("2.0.0"))
    until(lambda: agent.gateway.loaded() == {two.manifest: "active"})
    agent.gateway.quarantine(two.manifest, fall_back=False)
    until(lambda: agent.gateway.routed("digits") == one.manifest)
    assert until(lambda: agent.transport.items("receipts")[-1]["kind"] == "rollback")
    until(lambda: agent.transport.slot("digits")["active"] == one.manifest)


def test_a_flipped_bit_in_a_served_blob_is_refused_and_fetched_again(world, agent):
    """One bit on the wire: thrown away with an event, then fetched from zero; old one serves."""
    one = succeed(agent, world.publish("1.0.0"))
    two = world.publish("2.0.0")
    weights = next(d for d in list(world.blobs)[::-1] if d != two.manifest)
    world.server.flip.add(weights)
    agent.assign(two)
    agent.event("digest_mismatch")
    assert agent.gateway.routed("digits") == one.manifest
    world.server.flip.clear()
    until(lambda: agent.gateway.routed("digits") == two.manifest)


def test_a_flipped_bit_in_the_manifest_is_refused(world, agent):
    """The manifest is a blob like any other: its digest was signed."""
    slot = world.publish("1.0.0")
    world.server.flip.add(slot.manifest)
    agent.assign(slot)
    assert agent.event("digest_mismatch")["level"] == "error"
    world.server.flip.clear()
    agent.reaches("succeeded")


def test_refusals_are_events_and_the_model_goes_on_serving(world, agent):
    """An assignment for another device: refused once, told once, reported, and nothing moves."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.assign(world.publish("2.0.0"), device="cam-9")
    event = agent.event("wrong_device")
    assert (event["step"], event["level"]) == ("receive", "error")
    until(lambda: agent.transport.reported[-1]["refused"] == "wrong_device")
    agent.transport.connect()
    agent.transport.connect()
    assert agent.gateway.routed("digits") == one.manifest
    codes = [e["code"] for e in agent.transport.items("events")]
    assert codes.count("wrong_device") == 1


def test_events_of_the_gateway_reach_the_fleet_manager(world, agent):
    """A worker that died is told by the gateway and passed on."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.gateway.tell(control.Event("worker_died", "digits", one.manifest, "signal 9"))
    assert agent.event("worker_died")["slot"] == "digits"


def test_a_full_store_fails_the_deployment_and_nothing_else(world):
    """A package beyond the quota is `store_full`; what served goes on."""
    agent = Agent(world, store={"max_bytes": 60_000}).start()
    try:
        one = succeed(agent, world.publish("1.0.0"))
        agent.assign(world.publish("2.0.0", body=b"x" * 70_000))
        assert agent.reaches("failed")["reason"] == "store_full"
        assert agent.gateway.routed("digits") == one.manifest
    finally:
        agent.close()


def test_what_nobody_needs_is_removed_after_success(world, agent):
    """Active and previous stay in the store; the version before them goes."""
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        slot = succeed(agent, world.publish(version))
    record = agent.record()
    kept = record.active.needs() | record.previous.needs()
    folder = agent.config.state / "store" / "blobs" / "sha256"
    until(lambda: {f"sha256:{p.name}" for p in folder.iterdir()} == kept, "tidying")
    assert record.active.digest == slot.manifest


def test_a_restart_starts_nothing_twice(world, agent):
    """Agentd goes and comes: the same document is known, and the gateway is taken over."""
    one = succeed(agent, world.publish("1.0.0"))
    agent.stop(end_gateway=False)
    seen = len(agent.gateway.seen)
    agent.start()
    agent.reaches("succeeded")
    assert agent.gateway.routed("digits") == one.manifest
    assert not {"Load", "Prove", "Release"} & set(agent.gateway.seen[seen:])
