"""TFLite models in a real gateway: names, shapes, types, and what is refused."""

from __future__ import annotations

import os
import signal

import msgspec
import numpy as np
import pytest

from edgefleet_shared.package import Limits
from tests import tflite_models as light
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.agent.test_gateway_life import kill_thrice
from tests.models import golden_bytes, linear, package


@pytest.fixture(scope="module")
def gateway():
    """A gateway for the tests of this file."""
    one = Gateway()
    yield one
    one.close()


def data(answer):
    """The data of the first output of an answer that is one."""
    status, document, _ = answer
    assert status == 200, document
    return document["outputs"][0]["data"]


def test_a_convolution_answers_as_numpy_computes_it(gateway, tmp_path):
    """Inputs and outputs bear the signature's names, whatever the tensors are called."""
    image = np.random.default_rng(5).normal(size=(1, 8, 8, 3)).astype(np.float32)
    golden = golden_bytes([({"image": image}, {"probabilities": light.conv_answer(image)[None]})])
    one = package(tmp_path, light.conv(), name="conv", golden=golden, cases=1)
    assert gateway.control.serve(one).ok
    body = fp32("image", image.ravel().tolist(), [1, 8, 8, 3])
    found = data(gateway.infer(body, "conv"))
    np.testing.assert_allclose(found, light.conv_answer(image), rtol=1e-4, atol=1e-6)
    wrong = golden_bytes([({"image": image}, {"probabilities": np.zeros((1, 5), np.float32)})])
    two = package(tmp_path, light.conv(), name="conv", golden=wrong, cases=1)
    assert gateway.control.prove(two).code == "golden_mismatch"


def test_quantised_tensors_go_in_and_out_as_they_are(gateway, tmp_path):
    """An int8 model takes and gives int8; golden integers must be equal."""
    q = np.array([[1, 2, 3, 6]], np.int8)
    golden = golden_bytes([({"q": q}, {"r": np.array([[6, 6]], np.int8)})])
    one = package(tmp_path, light.quantised(), name="q", golden=golden, cases=1)
    assert gateway.control.serve(one).ok
    body = {"inputs": [{"name": "q", "datatype": "INT8", "shape": [1, 4], "data": [127] * 4}]}
    assert data(gateway.infer(body, "q")) == [127, 127]  # saturated


def test_batches_of_any_size_without_a_signature(gateway, tmp_path):
    """Tensors without a signature are known by their own names, and are resized as asked."""
    gateway.control.serve(package(tmp_path, light.linear(2.0, signed=False), name="plain"))
    for rows in (1, 5, 2, 5, 1):
        answer = data(gateway.infer(fp32("x", [1.0] * 4 * rows, [rows, 4]), "plain"))
        assert answer == [8.0] * 2 * rows


def test_a_fixed_batch_is_kept(gateway, tmp_path):
    """A package may not promise more than the file takes: its first own zeros do not fit."""
    one = package(tmp_path, light.conv(), name="fixed")
    inputs = [msgspec.structs.replace(one.spec.inputs[0], shape=[2, 8, 8, 3])]
    one.spec = msgspec.structs.replace(one.spec, inputs=inputs)
    outcome = gateway.control.prove(one)
    assert (outcome.ok, outcome.code) == (False, "load_failed")
    assert "must have [1, 8, 8, 3]" in outcome.message


def test_text_is_refused_with_a_reason(gateway, tmp_path):
    """String tensors cannot be run; the report says which one."""
    outcome = gateway.control.prove(package(tmp_path, light.echo_text(), name="text"))
    assert outcome.ok is False
    assert "'t'" in outcome.message


def test_a_delegate_that_is_not_there_is_refused(gateway, tmp_path):
    """Another accelerator than the CPU is never replaced by it in silence."""
    one = package(tmp_path, light.linear(), name="tpu", accelerator="npu")
    assert gateway.control.prove(one).code == "unsupported_accelerator"


def test_memory_and_time_are_limited(gateway, tmp_path):
    """A TFLite model that takes too much of either ends the process that proves it."""
    big = package(tmp_path, light.greedy(200), name="big", limits=Limits(memory_mb=300))
    assert gateway.control.prove(big).code == "out_of_memory"
    small = package(tmp_path, light.greedy(40), name="big", limits=Limits(memory_mb=300))
    assert gateway.control.prove(small).ok
    rounds = np.array([2**30], np.int32)
    never = golden_bytes([({"rounds": rounds}, {"y": np.zeros((1, 128), np.float32)})])
    endless = package(tmp_path, light.slow(), golden=never, cases=1, limits=Limits(load_s=1))
    assert gateway.control.prove(endless).code == "load_timeout"


def test_nan_is_counted(gateway, tmp_path):
    """An answer that holds NaN is an answer, and is counted."""
    one = package(tmp_path, light.logarithm(), name="log")
    gateway.control.serve(one)
    for value in (1.0, -1.0):
        gateway.infer(fp32("x", [value]), "log")
    stats = gateway.control.stats()[one.spec.digest]
    assert (stats.requests, stats.nonfinite) == (2, 1)


def test_one_name_goes_from_onnx_to_tflite_and_back(gateway, tmp_path):
    """The route moves between runtimes; each answers with its own weights, the other stays warm."""
    onnx = package(tmp_path, linear(1.0), name="two")
    tflite = package(tmp_path, light.linear(3.0), name="two", version="2.0.0")
    for one, answer in ((onnx, 4), (tflite, 12), (onnx, 4), (tflite, 12)):
        gateway.control.serve(one)
        assert data(gateway.infer(fp32("x", [1.0] * 4, [1, 4]), "two")) == [answer, answer]


def test_a_worker_that_dies_is_replaced(gateway, tmp_path):
    """A crash of the LiteRT worker ends that worker: another comes and answers."""
    one = package(tmp_path, light.linear(2.0), name="mortal")
    pid = gateway.control.serve(one).pid
    os.kill(pid, signal.SIGSEGV)
    event = gateway.control.wait_event("restarted")
    assert (event.model, event.digest) == ("mortal", one.spec.digest)
    body = fp32("x", [1.0] * 4, [1, 4])
    wait_for(lambda: gateway.infer(body, "mortal")[0] == 200, "an answer")
    assert gateway.process.poll() is None


def test_three_crashes_of_a_tflite_worker_bring_the_onnx_version_back(gateway, tmp_path):
    """A crashing LiteRT worker takes nothing along: it is quarantined, and the standby serves."""
    good = package(tmp_path, linear(1.0), name="frail")
    bad = package(tmp_path, light.linear(2.0), name="frail", version="2.0.0")
    gateway.control.serve(good)
    gateway.control.serve(bad)
    kill_thrice(gateway, bad.spec.digest)
    event = gateway.control.wait_event("quarantined")
    assert (event.digest, event.fallback) == (bad.spec.digest, good.spec.digest)
    assert data(gateway.infer(fp32("x", [1.0] * 4, [1, 4]), "frail")) == [4, 4]
