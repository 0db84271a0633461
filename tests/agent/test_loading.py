"""What a worker checks before it serves, and what is refused with which code."""

from __future__ import annotations

import time

import numpy as np
import onnx
from onnx.external_data_helper import convert_model_to_external_data

from edgefleet_agent.ipc import control
from edgefleet_shared.package import Limits
from tests.agent.gateways import fp32
from tests.models import golden_bytes, greedy, linear, logarithm, mlp, package, slow


def linear_golden(scale: float) -> bytes:
    """One case of the linear model as it answers with `scale`."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    return golden_bytes([({"x": x}, {"y": np.full((1, 2), 10 * scale, np.float32)})])


def test_golden_vectors_decide(gateway, tmp_path):
    """Right golden vectors load; wrong ones are refused, in proving and in loading."""
    right = package(tmp_path, linear(2.0), golden=linear_golden(2.0), cases=1)
    wrong = package(tmp_path, linear(2.0), golden=linear_golden(2.1), cases=1)
    assert gateway.control.prove(right).ok
    assert gateway.control.load(right).ok
    for outcome in (gateway.control.prove(wrong), gateway.control.load(wrong)):
        assert (outcome.ok, outcome.code) == (False, "golden_mismatch")
        assert "2 of 2 elements" in outcome.message


def test_bad_models_are_refused_with_a_reason(gateway, tmp_path):
    """Unknown runtime or accelerator, bytes that are no model, a wrong signature: each its code."""
    good = package(tmp_path, linear(1.0))
    for changed, code in [
        (package(tmp_path, linear(1.0), runtime="abacus"), "unsupported_runtime"),
        (package(tmp_path, linear(1.0), runtime="litert"), "load_failed"),
        (package(tmp_path, linear(1.0), runtime="nonesuch"), "unsupported_runtime"),
        (package(tmp_path, linear(1.0), accelerator="npu"), "unsupported_accelerator"),
        (package(tmp_path, linear(1.0), graph_optimization_level="never"), "load_failed"),
    ]:
        outcome = gateway.control.prove(changed)
        assert (outcome.ok, outcome.code) == (False, code), outcome
    good.paths[0].write_bytes(b"not a model".ljust(good.spec.files[0].size))
    assert gateway.control.prove(good).code == "not_a_model"
    good.paths[0].write_bytes(b"not a model")
    assert gateway.control.prove(good).code == "blob_corrupt"
    short = package(tmp_path, linear(1.0))
    outcome = gateway.control.ask(control.Load, short.spec, files=[])
    assert "0 descriptors" in outcome.message
    assert gateway.control.ask(control.Flip, "m", short.spec.digest).code == "not_loaded"


def test_proving_is_stopped_by_clock_and_by_memory(gateway, tmp_path):
    """A model that loads for ever or takes too much memory is ended; others are served on."""
    good = package(tmp_path, linear(1.0))
    gateway.control.serve(good)
    rounds = np.array([10_000_000], np.int64)
    never = golden_bytes([({"rounds": rounds}, {"y": np.zeros((1, 1), np.float32)})])
    endless = package(tmp_path, slow(), golden=never, cases=1, limits=Limits(load_s=1))
    begun = time.monotonic()
    assert gateway.control.prove(endless).code == "load_timeout"
    assert time.monotonic() - begun < 5
    big = package(tmp_path, greedy(400), limits=Limits(memory_mb=300))
    outcome = gateway.control.prove(big)
    assert (outcome.ok, outcome.code) == (False, "out_of_memory"), outcome
    assert gateway.control.prove(package(tmp_path, greedy(40), limits=Limits(memory_mb=300))).ok
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


def test_external_weights_come_from_descriptors(gateway, tmp_path):
    """Weights beside the model are found by their path in the package."""
    model = onnx.load_model_from_string(mlp())
    convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    inline = package(tmp_path, mlp(), name="inline")
    apart = package(
        tmp_path,
        (folder / "model.onnx").read_bytes(),
        name="apart",
        extra={"w.bin": (folder / "w.bin").read_bytes()},
    )
    gateway.control.serve(inline)
    gateway.control.serve(apart)
    body = fp32("x", [0.25] * 64, [1, 64])
    answers = [gateway.infer(body, name)[1]["outputs"] for name in ("inline", "apart")]
    assert answers[0] == answers[1]


def test_nan_is_counted(gateway, tmp_path):
    """An answer that holds NaN is an answer, and is counted."""
    one = package(tmp_path, logarithm())
    gateway.control.serve(one)
    for value in (1.0, -1.0, 2.0):
        assert gateway.infer(fp32("x", [value]))[0] == 200
    stats = gateway.control.stats()[one.spec.digest]
    assert (stats.requests, stats.nonfinite) == (3, 1)
    assert sum(stats.latency.values()) == sum(stats.compute.values()) == 3
    assert stats.memory_kb > 1000
