"""What each process is made of, read from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgefleet_agent import code_pages
from edgefleet_agent.ipc import control
from tests import tflite_models
from tests.agent.gateways import Gateway, fp32
from tests.models import linear, package


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty HOME."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def serving(tmp_path_factory, home):
    """A gateway that serves one model, with its worker's pid."""
    gateway = Gateway(environ={"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")})
    outcome = gateway.control.serve(package(tmp_path_factory.mktemp("p"), linear(1.0)))
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    yield gateway, outcome.pid
    gateway.close()


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_gateway_has_no_array_library(serving):
    """Neither numpy nor onnxruntime is mapped into the gateway; both are in the worker."""
    gateway, worker = serving
    maps = Path(f"/proc/{gateway.process.pid}/maps").read_text()
    assert "numpy" not in maps
    assert "onnxruntime" not in maps
    assert "onnxruntime" in Path(f"/proc/{worker}/maps").read_text()


def test_the_zygote_has_one_thread(serving):
    """The zygote has imported onnxruntime and still has one thread, so forking it is safe."""
    gateway, _ = serving
    zygote = gateway.zygote()
    assert status(zygote)["Threads"] == "1"
    assert "onnxruntime" in Path(f"/proc/{zygote}/maps").read_text()


def test_the_zygote_holds_no_code_that_it_does_not_run(serving):
    """It has let go of what importing onnxruntime ran; a worker has what it runs."""
    gateway, worker = serving
    held = {}
    for pid in (gateway.zygote(), worker):
        found = code_pages.unchanged(Path(f"/proc/{pid}/smaps").read_text())
        held[pid] = sum(one.resident_kb for one in found)
    assert held[gateway.zygote()] < held[worker] / 2


def test_the_zygote_imports_what_is_used(serving, tmp_path):
    """LiteRT comes into the zygote with the first TFLite model; it has one thread all the same."""
    gateway, _ = serving
    zygote = gateway.zygote()
    assert "ai_edge_litert" not in Path(f"/proc/{zygote}/maps").read_text()
    one = package(tmp_path, tflite_models.linear(1.0), name="light")
    assert gateway.control.serve(one).ok
    assert gateway.zygote() == zygote
    assert "ai_edge_litert" in Path(f"/proc/{zygote}/maps").read_text()
    assert status(zygote)["Threads"] == "1"
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]), "light")[1]["outputs"][0]["data"] == [
        10, 10,
    ]  # fmt: skip
    gateway.control.ask(control.Unroute, "light")


def test_runtimes_write_nothing_at_home(serving, home):
    """Telemetry is off: no file appears under HOME."""
    del serving
    assert list(home.rglob("*")) == []


def test_a_worker_has_given_up_what_it_does_not_need(serving):
    """No new privileges, core dumps or foreign descriptors, and first for the OOM killer."""
    gateway, worker = serving
    fields = status(worker)
    assert fields["NoNewPrivs"] == "1"
    assert int(Path(f"/proc/{worker}/oom_score_adj").read_text()) >= 500
    limits = Path(f"/proc/{worker}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()[1:]}
    assert rows["Max core file size"][:2] == ["0", "0"]
    assert int(rows["Max open files"][1]) < 128
    assert rows["Max address space"][1] != "unlimited"
    opened = [str(path.readlink()) for path in Path(f"/proc/{worker}/fd").iterdir()]
    assert sum(name.startswith("socket:") for name in opened) == 2  # requests, and descriptors
    assert int(fields["PPid"]) == gateway.process.pid


def test_a_worker_serves_at_normal_priority(serving):
    """Loading at a low priority leaves nothing behind in the thread that serves."""
    _, worker = serving
    assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0)


def test_idle_processes_sleep(serving):
    """Gateway, zygote and worker together take less than 1 % of a core while nothing is asked."""
    gateway, worker = serving
    pids = [gateway.process.pid, gateway.zygote(), worker]

    def ticks() -> int:
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
        return sum(int(one[11]) + int(one[12]) for one in fields)

    before = ticks()
    time.sleep(1.5)
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") / 1.5 < 0.01
