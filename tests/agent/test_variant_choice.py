"""Several variants fit: the device measures, takes the best, says why, and falls to the next."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest

from edgefleet_agent.choosing import read_choices
from edgefleet_agent.cli import main
from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.package import FileEntry, Golden, Limits, TensorSpec
from tests.agent.gateways import Gateway
from tests.agent.running import Agent
from tests.agent.world import QUICK, World, until
from tests.models import golden_bytes, slow

REPLACE = msgspec.structs.replace


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running agent before a scripted gateway."""
    agent = Agent(world).start()
    yield agent
    agent.close()


def offer(world, *ids: str, version: str = "1.0.0", differ: bool = True):
    """Publish a version with so many variants that all fit, each with a model of its own."""
    world.blobs[sha256_digest(b"golden")] = b"golden"
    vectors = FileEntry("golden.safetensors", sha256_digest(b"golden"), 6, "golden")

    def several(manifest):
        first = manifest.variants[0]
        made = []
        for name in ids:
            body = f"{version} {name if differ else ''}".encode()
            world.blobs[sha256_digest(body)] = body
            model = FileEntry("model.onnx", sha256_digest(body), len(body), "onnx")
            golden = Golden("golden.safetensors", 1)
            made.append(REPLACE(first, id=name, files=[model, vectors], golden=golden))
        return REPLACE(manifest, variants=made)

    return world.publish(version, change=several)


def test_the_fastest_is_taken_and_the_fleet_manager_told_why(world, agent):
    """Each is proved and measured, the best is loaded; report, event, journal and book agree."""
    agent.gateway.medians = {"a": 900, "b": 300, "c": 600}
    agent.assign(slot := offer(world, "a", "b", "c"))
    report = agent.reaches("succeeded")
    assert report["variant"] == "b"
    assert report["choice"].startswith("b (0.3 ms")
    assert agent.gateway.variants == ["Prove a", "Prove b", "Prove c", "Load b"]
    event = agent.event("variant_chosen")
    assert {m["variant"]: m["median_us"] for m in event["data"]["measured"]} == {
        "a": 900, "b": 300, "c": 600,
    }  # fmt: skip
    active = agent.record().active
    assert (active.variant, active.alternates) == ("b", ["c", "a"])
    assert [c.order for c in read_choices(agent.config.state / "variants.json")] == [
        ["b", "c", "a"]
    ]
    assert slot.manifest == active.digest


def test_whoever_stands_beside_the_device_sees_why(world, agent, capsys):
    """`models` shows the choice in a line, and every candidate's numbers to machines."""
    agent.gateway.medians = {"a": 900, "b": 300}
    agent.assign(offer(world, "a", "b"))
    agent.reaches("succeeded")
    toml = agent.folder / "agent.toml"
    toml.write_text(f'state_dir = "{agent.config.state}"\nrun_dir = "{agent.run_dir}"\n')
    assert main(["models", "--config", str(toml)]) == 0
    assert "digits 1.0.0: b (0.3 ms" in capsys.readouterr().out
    assert main(["models", "--json", "--config", str(toml)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert {m["variant"]: m["median_us"] for m in found["measured"]} == {"a": 900, "b": 300}


def test_one_that_fails_its_proof_is_out_and_named(world, agent):
    """The others serve; the reason says which failed and by what."""
    agent.gateway.medians = {"a": 100, "b": 300}
    agent.gateway.refuse["Prove", "a"] = "golden_mismatch"
    agent.assign(offer(world, "a", "b"))
    report = agent.reaches("succeeded")
    assert report["variant"] == "b"
    assert "a failed (golden_mismatch)" in report["choice"]
    assert not agent.record().active.alternates


def test_the_chosen_one_fails_to_load_and_the_next_is_taken(world, agent):
    """It proved well and cannot be loaded beside what serves: the next best is, and it is said."""
    agent.gateway.medians = {"a": 100, "b": 300}
    agent.gateway.refuse["Load", "a"] = "out_of_memory"
    agent.assign(offer(world, "a", "b"))
    assert agent.reaches("succeeded")["variant"] == "b"
    assert "a cannot be loaded (out_of_memory)" in agent.event("variant_failed")["message"]
    assert agent.record().active.variant == "b"


def test_none_that_passes_fails_the_deployment(world, agent):
    """The reason is that of the manifest's first."""
    agent.gateway.refuse["Prove", "a"] = "golden_mismatch"
    agent.gateway.refuse["Prove", "b"] = "crashed"
    agent.assign(offer(world, "a", "b"))
    assert agent.reaches("failed")["reason"] == "golden_mismatch"
    assert not agent.gateway.loaded()


def test_the_same_package_is_measured_once(world, agent):
    """Stopped and assigned again, it is loaded by what is in the book, also after a restart."""
    agent.gateway.medians = {"a": 900, "b": 300}
    agent.assign(slot := offer(world, "a", "b"))
    agent.reaches("succeeded")
    agent.assign(REPLACE(slot, mode="stop", deployment=new_id()))
    until(lambda: not agent.gateway.routed("digits"), "nothing is served")
    agent.stop()
    agent.new_gateway()
    agent.start()
    agent.assign(REPLACE(slot, deployment=new_id()))
    until(lambda: agent.gateway.routed("digits") == slot.manifest, "service")
    assert agent.gateway.variants == ["Load b"]


def test_one_variant_is_proved_and_not_measured(world, agent):
    """There is nothing to choose; the report says so."""
    agent.assign(world.publish("1.0.0"))
    report = agent.reaches("succeeded")
    assert (report["variant"], report["choice"]) == (
        "cpu", "It is the only variant that can run here.",
    )  # fmt: skip
    assert not (agent.config.state / "variants.json").exists()


def test_a_variant_that_no_longer_loads_is_replaced_at_boot(world, agent):
    """After a restart the best variant's accelerator is gone: the next best serves, and stays."""
    agent.gateway.medians = {"a": 900, "b": 300}
    agent.assign(slot := offer(world, "a", "b"))
    agent.reaches("succeeded")
    agent.stop()
    gateway = agent.new_gateway()
    gateway.refuse["Load", "b"] = "load_failed"
    agent.start()
    until(lambda: gateway.routed("digits") == slot.manifest, "the next best")
    assert gateway.variants == ["Load b", "Load a"]
    until(lambda: agent.record().active.variant == "a", "the journal")
    assert agent.record().active.blobs  # of both: they are kept on disk


def test_another_machine_is_measured_anew_at_boot(world, agent):
    """The disk in another device, or a new runtime: what was measured here is not believed."""
    agent.gateway.medians = {"a": 900, "b": 300}
    agent.assign(slot := offer(world, "a", "b"))
    agent.reaches("succeeded")
    agent.stop()
    book = agent.config.state / "variants.json"
    changed = json.loads(book.read_text()) | {"fingerprint": "another"}
    book.write_text(json.dumps(changed))
    gateway = agent.new_gateway()
    gateway.medians = {"a": 100, "b": 300}
    agent.start()
    until(lambda: gateway.routed("digits") == slot.manifest, "service")
    assert gateway.variants == ["Prove a", "Prove b", "Load a"]
    assert agent.record().active.variant == "a"


def test_real_models_are_measured_by_real_workers(world):
    """Two variants of one function, one doing a hundred times the work: the quick one serves."""
    agent = Agent(world)
    agent.gateway.close()
    shutil.rmtree(agent.run_dir)
    gateway = Gateway("--threads", "1")
    agent.config = REPLACE(agent.config, run_dir=str(gateway.run))
    try:
        agent.start()
        agent.assign(rounds(world, quick=10, long=1000))
        report = agent.reaches("succeeded")
        assert report["variant"] == "quick", report
        measured = {
            m.variant: m for m in read_choices(agent.config.state / "variants.json")[0].measured
        }
        assert measured["long"].median_us > measured["quick"].median_us > 0
        assert measured["quick"].accelerated_pct == 100
        assert gateway.control.stats()[agent.record().active.digest].role == "active"
    finally:
        agent.stop(end_gateway=False)
        gateway.close()
        shutil.rmtree(agent.folder, ignore_errors=True)


def rounds(world, **variants: int):
    """Publish variants of the same model file whose golden case asks for so many rounds."""
    body = slow()
    world.blobs[model := sha256_digest(body)] = body

    def several(manifest):
        first = manifest.variants[0]
        made = []
        for name, count in variants.items():
            case = (
                {"rounds": np.array([count], np.int64)},
                {"y": np.full((1, 1), 1 / 128, np.float32)},
            )
            vectors = golden_bytes([case])
            world.blobs[sha256_digest(vectors)] = vectors
            files = [
                FileEntry("model.onnx", model, len(body), "onnx"),
                FileEntry("golden.safetensors", sha256_digest(vectors), len(vectors), "golden"),
            ]
            made.append(
                REPLACE(
                    first, id=name, files=files, golden=Golden("golden.safetensors", 1),
                    inputs=[TensorSpec("rounds", "INT64", [1])],
                    outputs=[TensorSpec("y", "FP32", [1, 1])], limits=Limits(load_s=30),
                )
            )  # fmt: skip
        return REPLACE(manifest, variants=made)

    slot = world.publish("1.0.0", change=several)
    return REPLACE(slot, policy=QUICK)
