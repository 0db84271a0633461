"""How much of a model runs on its accelerator, and that nobody is told anything else."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgefleet_agent.ipc import control, frames
from edgefleet_agent.runtimes.onnx import OnnxRuntime
from edgefleet_shared.errors import InvalidInputError
from tests.agent.gateways import fp32
from tests.agent.test_loading import linear_golden
from tests.agent.world import World
from tests.models import linear, mlp, package


def test_on_the_cpu_every_node_is_where_it_should_be(gateway, tmp_path):
    """A CPU variant reports 100 % in its outcome, in the gateway's state and in its counters."""
    one = package(tmp_path, linear(2.0), golden=linear_golden(2.0), cases=1)
    assert gateway.control.prove(one).accelerated_pct == 100
    assert gateway.control.serve(one).accelerated_pct == 100
    assert gateway.control.load(one).accelerated_pct == 100
    assert gateway.control.ask(control.Hello).workers[0].accelerated_pct == 100
    gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))
    assert gateway.control.stats()[one.spec.digest].accelerated_pct == 100


def test_a_proof_measures_when_asked(gateway, tmp_path):
    """The median run is told by a proof that measures, and by no other."""
    one = package(tmp_path, mlp())
    assert gateway.control.prove(one).median_us == 0
    measured = gateway.control.ask(control.Prove, one.spec, measure=True, files=one.open())
    assert measured.ok
    assert 0 < measured.median_us < 1_000_000


@pytest.mark.parametrize(
    "provider", ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "NobodysExecutionProvider"]
)
def test_what_is_not_installed_is_an_error_and_no_silent_cpu(tmp_path, provider):
    """By itself onnxruntime would warn and run on the CPU; here the load fails by name.

    `NobodysExecutionProvider` exists nowhere; the others are not installed with the plain wheel.
    """
    one = package(tmp_path, linear(1.0), accelerator="gpu")
    files = one.open()
    with pytest.raises(RuntimeError, match=provider):
        OnnxRuntime().open(one.spec, files, {provider: {}, "CPUExecutionProvider": {}})


def test_a_session_tells_its_share(tmp_path):
    """Nodes are counted by the provider that onnxruntime gave them to."""
    one = package(tmp_path, mlp())
    session = OnnxRuntime().open(one.spec, one.open(), {"CPUExecutionProvider": {}})
    assert session.device_share == 100
    assert set(session.run({"x": np.zeros((1, 64), np.float32)})) == {"label", "scores"}


def test_a_worker_s_claims_are_bounded():
    """A model that has taken its worker over cannot claim more than there is."""
    wild = frames.Report(ok=True, accelerated_pct=10**9, median_us=-5).bounded()
    assert (wild.accelerated_pct, wild.median_us) == (100, 0)
    assert frames.Report(ok=True, accelerated_pct=-9).bounded().accelerated_pct == -1


def test_a_cpu_variant_may_not_forbid_the_cpu():
    """`cpu_fallback: false` on a CPU variant contradicts itself, and is refused on both sides."""
    world = World()
    try:
        with pytest.raises(InvalidInputError, match="runs on the CPU and forbids it"):
            world.publish("1.0.0", change=strict)
    finally:
        world.close()


def strict(manifest):
    """Return the manifest with its only variant forbidding the CPU."""
    variant = manifest.variants[0]
    need = msgspec.structs.replace(variant.runtime, cpu_fallback=False)
    changed = msgspec.structs.replace(variant, runtime=need)
    return msgspec.structs.replace(manifest, variants=[changed])
