"""What only an NVIDIA GPU can show: swap under load on CUDA, memory that comes back, throughput.

Skips by name where there is none, as in CI; nothing of it has run on hardware yet.
"""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec
import numpy as np
import pytest

from edgefleet_agent import nvml
from edgefleet_agent.ipc import control
from tests.agent.gateways import fp32, wait_for
from tests.models import Package, golden_bytes, linear, mlp, package

CUDA = "CUDAExecutionProvider"
PLACEMENT = {
    CUDA: {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": str(256 * 2**20),
    },
    "CPUExecutionProvider": {},
}
SLACK_MB = 32
"""By how much a card's free memory may differ from before: other processes live there too."""


def lacking() -> str:
    """Return what this machine lacks to run them, or ''."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime-gpu"
    if CUDA not in onnxruntime.get_available_providers():
        return "onnxruntime-gpu (extra cuda)"
    return "" if nvml.read() else "an NVIDIA GPU with its driver"


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(lacking()), reason=f"untested on hardware: needs {lacking()}"),
]


def on_cuda(folder, model: bytes, **fields) -> Package:
    """Return a package placed on CUDA, as agentd would."""
    made = package(folder, model, accelerator="gpu", **fields)
    return Package(msgspec.structs.replace(made.spec, placement=PLACEMENT), made.paths)


def free_mb() -> int:
    """Return the card's free memory."""
    card = nvml.read()
    assert card is not None
    return card.free_mb


def test_a_model_runs_on_cuda_and_says_so(gateway, tmp_path):
    """Every node there, the golden vectors hold, every layer of the sandbox is in force."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    golden = golden_bytes([({"x": x}, {"y": np.full((1, 2), 20, np.float32)})])
    outcome = gateway.control.serve(on_cuda(tmp_path, linear(2.0), golden=golden, cases=1))
    assert outcome.accelerated_pct == 100
    assert not control.missing_layers(outcome.sandbox)


def test_swap_under_load_and_the_memory_comes_back(gateway, tmp_path):
    """Ten swaps while a client asks: none fails; once all is released the card is as before."""
    before = free_mb()
    pair = [on_cuda(tmp_path, linear(float(n)), version=f"{n}.0.0") for n in (1, 2)]
    gateway.control.serve(pair[0])
    failed, over = [], threading.Event()

    def ask():
        while not over.is_set():
            status, answer, _ = gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))
            if status != 200:
                failed.append(answer)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for turn in range(1, 11):
            gateway.control.serve(pair[turn % 2])
            released = gateway.control.ask(control.Release, pair[1 - turn % 2].spec.digest)
            assert released.ok
    finally:
        over.set()
        asking.join(20)
    assert not failed
    assert free_mb() < before
    gateway.control.ask(control.Unroute, "m")
    wait_for(lambda: not gateway.control.ask(control.Hello).workers, "the end of every worker")
    wait_for(lambda: free_mb() >= before - SLACK_MB, f"{before} MB free again, {free_mb()} are")


def test_throughput_beside_raw_onnxruntime(tmp_path, gateway, capsys):
    """The same model and inputs, raw and through the gateway: both are printed, neither judged."""
    import onnxruntime

    one = on_cuda(tmp_path, mlp(), name="mlp")
    session = onnxruntime.InferenceSession(one.paths[0].read_bytes(), providers=[CUDA])
    x = np.zeros((1, 64), np.float32)
    session.run(None, {"x": x})
    begun = time.perf_counter()
    for _ in range(1000):
        session.run(None, {"x": x})
    raw = 1000 / (time.perf_counter() - begun)
    gateway.control.serve(one)
    with contextlib.closing(gateway.connect()) as connection:
        body = msgspec.json.encode(fp32("x", [0.0] * 64, [1, 64]))
        begun = time.perf_counter()
        for _ in range(1000):
            connection.request("POST", "/v2/models/mlp/infer", body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
    served = 1000 / (time.perf_counter() - begun)
    with capsys.disabled():
        print(f"\nCUDA, mlp, one client: raw {raw:.0f}/s, gateway {served:.0f}/s")
