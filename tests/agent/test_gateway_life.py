"""Swaps, crashes and refusals, with real processes that really die."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

from edgefleet_agent.ipc import control
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.models import linear, package, slow

LONG = {"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [15_000]}]}
"""About half a second of work for the slow model."""

SHORT = {"inputs": [LONG["inputs"][0] | {"data": [1]}]}


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
    # A worker counts what it answers by itself once the answer is sent.
    wait_for(lambda: sum(s.requests for s in gateway.control.stats().values()) == sum(counts),
             "every answer to be counted")  # fmt: skip
    stats = gateway.control.stats()
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
    assert gateway.infer(SHORT)[1]["model_version"] == "2.0.0"
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


def test_a_request_that_two_workers_died_on_is_given_up(gateway, tmp_path):
    """It is replayed once, not until every worker is dead."""
    old = package(tmp_path, slow(), version="1.0.0")
    new = package(tmp_path, slow(), version="2.0.0")
    workers = [gateway.control.serve(one).pid for one in (old, new)]
    asking = Asking(gateway, LONG, "m")
    for package_, pid in zip((new, old), reversed(workers), strict=True):
        in_flight(gateway, package_)
        os.kill(pid, signal.SIGKILL)
    status, body = asking.answer()
    assert (status, body["code"]) == (500, "worker_crashed")
    gateway.control.wait_event("restarted")
    gateway.control.wait_event("restarted")
    assert gateway.infer(SHORT)[0] == 200


def test_a_worker_that_hangs_is_replaced(tmp_path):
    """A worker that gives no answer for the whole timeout is killed and started again."""
    gateway = Gateway("--timeout-s", "0.4")
    try:
        only = package(tmp_path, slow())
        gateway.control.serve(only)
        endless = {"inputs": [LONG["inputs"][0] | {"data": [10**12]}]}
        status, body, _ = gateway.infer(endless)
        assert (status, body["code"]) == (504, "deadline")
        assert gateway.control.wait_event("restarted").digest == only.spec.digest
        assert gateway.infer(SHORT)[0] == 200
    finally:
        gateway.close()


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


def test_unroute(gateway, tmp_path):
    """A model that is unrouted is unknown, and its workers are gone."""
    one = package(tmp_path, linear(1.0))
    outcome = gateway.control.serve(one)
    assert gateway.control.ask(control.Release, one.spec.digest).code == "active"
    assert gateway.control.ask(control.Unroute, "m").ok
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 404
    wait_for(lambda: not Path(f"/proc/{outcome.pid}").exists(), "the worker's end")
    assert gateway.control.ask(control.Hello).workers == []
