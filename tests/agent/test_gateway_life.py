"""Swaps, crashes and refusals, with real processes that really die."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent.ipc import control
from edgefleet_shared.package import Limits
from tests.agent.gateways import Control, Gateway, fp32, wait_for
from tests.models import golden_bytes, greedy, linear, logarithm, mlp, package, slow

LONG = {"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [15_000]}]}
"""About half a second of work for the slow model."""


class Asking:
    """Asks for one inference in a thread of its own."""

    def __init__(self, gateway: Gateway, body: dict, model: str) -> None:
        self.result = None
        self._thread = threading.Thread(target=self._run, args=(gateway, body, model))
        self._thread.start()

    def _run(self, gateway, body, model):
        self.result = gateway.infer(body, model)[:2]

    def answer(self):
        self._thread.join(20)
        return self.result


def in_flight(gateway, package_, count=1):
    """Wait until the gateway has asked the package's worker so many requests."""
    digest = package_.spec.digest
    wait_for(
        lambda: gateway.control.stats()[digest].in_flight == count, f"{count} requests in flight"
    )


def test_swaps_under_load_lose_nothing(gateway, tmp_path):
    """Four clients at full speed and twenty swaps: each request is answered, by one of the two."""
    one = package(tmp_path, linear(1.0), version="1.0.0")
    two = package(tmp_path, linear(2.0), version="2.0.0")
    gateway.control.serve(one)
    stop = threading.Event()
    wrong: list = []
    versions: set = set()
    counts = [0] * 4

    def client(index: int) -> None:
        body = json.dumps(fp32("x", [1, 2, 3, 4], [1, 4]))
        connection = gateway.connect()
        while not stop.is_set():
            connection.request("POST", "/v2/models/m/infer", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            want = {"1.0.0": 10.0, "2.0.0": 20.0}.get(answer.get("model_version"))
            if response.status != 200 or answer["outputs"][0]["data"] != [want, want]:
                wrong.append(answer)
            versions.add(answer.get("model_version"))
            counts[index] += 1
        connection.close()

    clients = [threading.Thread(target=client, args=(index,)) for index in range(4)]
    for thread in clients:
        thread.start()
    for swap in range(20):
        new, old = (two, one) if swap % 2 == 0 else (one, two)
        gateway.control.serve(new)
        assert gateway.control.ask(control.Release, old.spec.digest).ok
    stop.set()
    for thread in clients:
        thread.join()
    assert not wrong
    assert versions == {"1.0.0", "2.0.0"}
    stats = gateway.control.stats()
    assert sum(one.requests for one in stats.values()) == sum(counts)
    assert not any(s.rejected or s.server_errors or s.client_errors for s in stats.values())


def test_requests_in_flight_finish_on_the_old_version(gateway, tmp_path):
    """A flip leaves a running request where it is; `Release` waits for it."""
    old = package(tmp_path, slow(), version="1.0.0")
    new = package(tmp_path, slow(), version="2.0.0")
    gateway.control.serve(old)
    assert gateway.control.load(new).ok
    asking = Asking(gateway, LONG, "m")
    in_flight(gateway, old)
    flipped = gateway.control.ask(control.Flip, "m", new.spec.digest)
    assert (flipped.previous, flipped.in_flight) == (old.spec.digest, 1)
    assert gateway.control.ask(control.Release, old.spec.digest).ok
    status, body = asking.answer()
    assert (status, body["model_version"]) == (200, "1.0.0")
    assert {worker.version for worker in gateway.control.ask(control.Hello).workers} == {"2.0.0"}


def test_a_killed_worker_s_request_is_answered_by_the_standby(gateway, tmp_path):
    """SIGKILL in the middle of a request: the previous version answers, the active one restarts."""
    old = package(tmp_path, slow(), version="1.0.0")
    new = package(tmp_path, slow(), version="2.0.0")
    gateway.control.serve(old)
    outcome = gateway.control.serve(new)
    asking = Asking(gateway, LONG, "m")
    in_flight(gateway, new)
    os.kill(outcome.pid, signal.SIGKILL)
    status, body = asking.answer()
    assert (status, body["model_version"]) == (200, "1.0.0")
    assert "SIGKILL" in gateway.control.wait_event("worker_died").message
    assert gateway.control.wait_event("restarted").digest == new.spec.digest
    short = {"inputs": [LONG["inputs"][0] | {"data": [1]}]}
    assert gateway.infer(short)[1]["model_version"] == "2.0.0"
    counted = gateway.control.stats()[new.spec.digest]
    assert (counted.crashes, counted.replayed) == (1, 1)


def test_a_killed_worker_s_request_is_answered_after_its_restart(gateway, tmp_path):
    """Without a standby the same request is asked again of a new worker of the same digest."""
    only = package(tmp_path, slow())
    outcome = gateway.control.serve(only)
    for path in only.paths:
        path.unlink()  # the gateway's descriptors suffice
    askings = [Asking(gateway, LONG, "m") for _ in range(3)]
    in_flight(gateway, only, 3)
    os.kill(outcome.pid, signal.SIGKILL)
    assert [asking.answer()[0] for asking in askings] == [200, 200, 200]
    state = gateway.control.ask(control.Hello)
    assert [worker.role for worker in state.workers] == ["active"]
    assert state.workers[0].pid not in {0, outcome.pid}


def kill_thrice(gateway, digest: str) -> None:
    """Kill the digest's worker, each time it has come back, until it stays away."""
    for _ in range(3):
        workers = {one.digest: one for one in gateway.control.ask(control.Hello).workers}
        os.kill(workers[digest].pid, signal.SIGKILL)
        gateway.control.wait_event("worker_died")
        if _ < 2:
            gateway.control.wait_event("restarted")


def test_three_crashes_bring_the_standby_back(gateway, tmp_path):
    """A digest that dies three times within a minute is quarantined; the standby takes over."""
    good = package(tmp_path, linear(1.0), version="1.0.0")
    bad = package(tmp_path, linear(2.0), version="2.0.0")
    gateway.control.serve(good)
    gateway.control.serve(bad)
    kill_thrice(gateway, bad.spec.digest)
    event = gateway.control.wait_event("quarantined")
    assert (event.digest, event.fallback) == (bad.spec.digest, good.spec.digest)
    status, body, _ = gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))
    assert (status, body["model_version"]) == (200, "1.0.0")
    refused = gateway.control.ask(control.Flip, "m", bad.spec.digest)
    assert refused.code == "quarantined"


def test_three_crashes_without_a_standby_give_a_reason(gateway, tmp_path):
    """With nothing to fall back on, requests get 503 and the reason; a new `Load` heals it."""
    only = package(tmp_path, linear(1.0))
    gateway.control.serve(only)
    kill_thrice(gateway, only.spec.digest)
    assert gateway.control.wait_event("quarantined").fallback == ""
    status, body, headers = gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))
    assert (status, body["code"], headers["Retry-After"]) == (503, "quarantined", "1")
    assert gateway.request("GET", "/v2/models/m/ready")[0] == 503
    gateway.control.serve(only)
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


def test_a_full_queue_refuses(tmp_path):
    """More open requests than the limit get 503 with Retry-After; those taken are answered."""
    gateway = Gateway("--queue-limit", "2")
    try:
        only = package(tmp_path, slow())
        gateway.control.serve(only)
        askings = [Asking(gateway, LONG, "m") for _ in range(2)]
        in_flight(gateway, only, 2)
        status, body, headers = gateway.infer(LONG)
        assert (status, body["code"], headers["Retry-After"]) == (503, "queue_full", "1")
        assert [asking.answer()[0] for asking in askings] == [200, 200]
        assert gateway.control.stats()[only.spec.digest].rejected == 1
    finally:
        gateway.close()


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
        (package(tmp_path, linear(1.0), runtime="litert"), "unsupported_runtime"),
        (package(tmp_path, linear(1.0), accelerator="npu"), "unsupported_accelerator"),
        (package(tmp_path, linear(1.0), graph_optimization_level="never"), "load_failed"),
    ]:
        outcome = gateway.control.prove(changed)
        assert (outcome.ok, outcome.code) == (False, code), outcome
    good.paths[0].write_bytes(b"not a model")
    assert gateway.control.prove(good).code == "load_failed"
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
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

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


def test_a_zygote_that_dies_comes_back(gateway, tmp_path):
    """Workers serve on while the zygote is dead, and new ones can be loaded after."""
    one = package(tmp_path, linear(1.0), version="1.0.0")
    two = package(tmp_path, linear(2.0), version="2.0.0")
    gateway.control.serve(one)
    zygote = gateway.zygote()
    os.kill(zygote, signal.SIGKILL)
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    gateway.control.serve(two)
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[1]["model_version"] == "2.0.0"
    assert gateway.zygote() != zygote


def test_workers_are_started_when_forking_does_not_work(gateway, tmp_path):
    """A zygote that dies again and again is given up; workers are started as programs."""
    for _ in range(3):
        zygote = gateway.zygote()
        os.kill(zygote, signal.SIGKILL)
        wait_for(lambda pid=zygote: not Path(f"/proc/{pid}").exists(), "the zygote's end")
    outcome = gateway.control.serve(package(tmp_path, linear(1.0)))
    command = Path(f"/proc/{outcome.pid}/cmdline").read_bytes()
    assert b"edgefleet_agent.worker" in command
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


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


def test_unroute(gateway, tmp_path):
    """A model that is unrouted is unknown, and its workers are gone."""
    one = package(tmp_path, linear(1.0))
    outcome = gateway.control.serve(one)
    assert gateway.control.ask(control.Release, one.spec.digest).code == "active"
    assert gateway.control.ask(control.Unroute, "m").ok
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 404
    wait_for(lambda: not Path(f"/proc/{outcome.pid}").exists(), "the worker's end")
    assert gateway.control.ask(control.Hello).workers == []


def test_the_gateway_outlives_agentd(gateway, tmp_path):
    """After agentd's connection breaks, requests are answered; a new one finds what runs."""
    one = package(tmp_path, linear(1.0))
    outcome = gateway.control.serve(one)
    boot = gateway.control.ask(control.Hello).boot
    gateway.control.close()
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200
    gateway.control = Control(gateway.run / "control.sock")
    state = gateway.control.ask(control.Hello)
    assert state.boot == boot
    assert state.workers == [
        control.WorkerInfo("m", "1.0.0", one.spec.digest, "active", outcome.pid)
    ]
    assert gateway.control.load(one).pid == outcome.pid


@pytest.mark.parametrize("way", ["signal", "message"])
def test_the_end_is_clean(tmp_path, way):
    """SIGTERM or `Shutdown` lets a running request finish and leaves no process and no socket."""
    gateway = Gateway()
    try:
        only = package(tmp_path, slow())
        gateway.control.serve(only)
        pids = gateway.children()
        asking = Asking(gateway, LONG, "m")
        in_flight(gateway, only)
        if way == "signal":
            gateway.process.send_signal(signal.SIGTERM)
        else:
            assert gateway.control.ask(control.Shutdown).ok
        assert asking.answer()[0] == 200
        assert gateway.process.wait(10) == 0
        assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert [path.name for path in gateway.run.iterdir()] == ["gateway.pid"]
    finally:
        gateway.close()


def test_a_killed_gateway_takes_its_workers_along(gateway, tmp_path):
    """SIGKILL of the gateway ends zygote and workers, also a busy one."""
    only = package(tmp_path, slow())
    gateway.control.serve(only)
    pids = gateway.children()
    connection = gateway.connect()
    connection.request("POST", "/v2/models/m/infer", json.dumps(LONG))
    in_flight(gateway, only)
    gateway.process.kill()
    gateway.process.wait()
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"the end of {pid}", 5)
    connection.close()


def test_an_orphan_ends(tmp_path):
    """With an orphan timeout the gateway ends by itself some time after agentd has gone."""
    gateway = Gateway("--orphan-timeout-s", "0.3")
    try:
        time.sleep(0.5)
        assert gateway.process.poll() is None, "it ended while agentd was there"
        gateway.control.close()
        assert gateway.process.wait(10) == 0
    finally:
        gateway.close()


def test_one_gateway_a_run_folder(gateway):
    """A second gateway in the same folder says why it does not start; the first one lives."""
    second = gateway.start()
    assert second.wait(10) == 75
    assert gateway.request("GET", "/v2/health/live")[0] == 200
    gateway.process.kill()
    gateway.process.wait()
    gateway.control.close()
    gateway.process = gateway.start()  # takes over stale sockets
    gateway.control = Control(gateway.run / "control.sock")
    assert gateway.control.ask(control.Hello).pid == gateway.process.pid
    assert gateway.request("GET", "/v2/health/live")[0] == 200
