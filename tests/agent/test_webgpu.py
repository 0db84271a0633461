"""A real execution provider on a GPU in software: probe, share, refusal, sandbox, swap, choice."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from edgefleet_agent.ipc import control
from tests.agent import software_gpu
from tests.agent.gateways import Gateway, fp32
from tests.agent.test_accelerator_workers import started_by
from tests.models import Package, golden_bytes, linear, package, partly

PLACEMENT = {"WebGpuExecutionProvider": {"device_type": "GPU"}, "CPUExecutionProvider": {}}
REPLACE = msgspec.structs.replace

pytestmark = pytest.mark.skipif(
    bool(software_gpu.missing()), reason=f"no GPU in software: needs {software_gpu.missing()}"
)


class GpuGateway(Gateway):
    """A gateway, and with it every worker, that finds a GPU."""

    def command(self) -> list[str]:
        return software_gpu.within(super().command())


@pytest.fixture(scope="module")
def gateway():
    """One gateway for these tests; starting WebGPU takes its time."""
    one = GpuGateway(environ=software_gpu.ENVIRONMENT)
    yield one
    one.close()


def on_gpu(folder, model: bytes, **fields) -> Package:
    """Return a package for a GPU, placed as agentd would."""
    made = package(folder, model, accelerator="gpu", **fields)
    return Package(REPLACE(made.spec, placement=PLACEMENT), made.paths)


PROBE = """
import json, sys
from pathlib import Path
from edgefleet_agent.accelerators.gpu import Gpu
from edgefleet_agent.proof import ProofBook
book = Path(sys.argv[1])
first = Gpu(prove=ProofBook(book, 60)).probe()
again = Gpu(prove=ProofBook(book, 60)).probe()
print(json.dumps([first.usable, list(first.providers), first.why_not, again.usable,
                  len(json.loads(book.read_text())["proofs"])]))
"""


def test_it_is_usable_once_a_model_has_run_on_it(tmp_path):
    """Installed, found, loaded, run, compared; remembered for the next start."""
    found = software_gpu.run(PROBE, str(tmp_path / "accelerators.json"))
    assert found == [True, ["WebGpuExecutionProvider"], "", True, 1]


BROKEN = (
    "import os\nos.environ['VK_ICD_FILENAMES'] = os.environ['VK_DRIVER_FILES'] = '/absent'\n"
    + PROBE
)


def test_found_is_not_usable(tmp_path):
    """The plugin lists a device whose driver is missing: no model runs, so it is not usable."""
    usable, providers, why_not, *_ = software_gpu.run(BROKEN, str(tmp_path / "a.json"))
    assert (usable, providers) == (False, [])
    assert "WebGpuExecutionProvider: " in why_not


def test_a_model_runs_there_in_a_worker_s_sandbox(gateway, tmp_path):
    """Every node on the GPU, golden vectors compared, a fresh process, every layer of the cage."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    golden = golden_bytes([({"x": x}, {"y": np.full((1, 2), 20, np.float32)})])
    one = on_gpu(tmp_path, linear(2.0), golden=golden, cases=1)
    outcome = gateway.control.serve(one)
    assert outcome.accelerated_pct == 100
    assert not control.missing_layers(outcome.sandbox)
    assert "edgefleet_agent.worker" in started_by(outcome.pid)
    answer = gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[1]
    assert answer["outputs"][0]["data"] == [20, 20]


def test_what_falls_back_to_the_cpu_is_counted_or_refused(gateway, tmp_path):
    """`Det` has no kernel for WebGPU: two nodes of three there; forbidden, it is refused."""
    one = on_gpu(tmp_path, partly(), name="partly")
    assert gateway.control.prove(one).accelerated_pct == 66
    strict = REPLACE(one.spec, cpu_fallback=False)
    outcome = gateway.control.prove(Package(strict, one.paths))
    assert (outcome.ok, outcome.code) == (False, "cpu_fallback")


def test_swap_under_load_on_the_gpu(gateway, tmp_path):
    """Old and new on the GPU, requests all the while: none fails, each answer is one of the two."""
    packages = [on_gpu(tmp_path, linear(float(n)), name="s", version=f"{n}.0.0") for n in (1, 2)]
    gateway.control.serve(packages[0])
    seen, failed, over = set(), [], threading.Event()

    def ask():
        while not over.is_set():
            status, answer, _ = gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]), model="s")
            if status != 200:
                failed.append(answer)
                return
            seen.add(answer["outputs"][0]["data"][0])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        gateway.control.serve(packages[1])
        gateway.control.ask(control.Release, packages[0].spec.digest)
        gateway.control.serve(packages[0])
    finally:
        over.set()
        asking.join(20)
    assert not failed
    assert seen <= {10, 20}
    assert 10 in seen
