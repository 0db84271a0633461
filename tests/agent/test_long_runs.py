"""Models whose runs are long: several at a time, and all that holds for one holds for them."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest

from edgefleet_agent.worker.pace import LONG_NS, Pace
from edgefleet_agent.worker.pool import Pool
from edgefleet_shared.package import Limits
from tests.agent.gateways import fp32, wait_for
from tests.models import golden_bytes, greedy, package, slow

many_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core: one run at a time"
)


def rounds(count: int) -> dict:
    """So many rounds of the slow model; 300 are about ten milliseconds."""
    return {"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [count]}]}


def long_model(folder, version="1.0.0"):
    """The slow model, whose warm-up takes so long that it counts as long from the start."""
    case = ({"rounds": np.array([300])}, {"y": np.full((1, 1), 1 / 128, np.float32)})
    return package(folder, slow(), golden=golden_bytes([case]), cases=1, version=version)


class Asking(threading.Thread):
    """One request in a thread of its own."""

    def __init__(self, gateway, body, model="m") -> None:
        super().__init__()
        self.ask = lambda: gateway.infer(body, model)[:2]
        self.result = None
        self.start()

    def run(self):
        self.result = self.ask()

    def answer(self):
        self.join(20)
        return self.result


def in_flight(gateway, one, count):
    """Wait until so many requests are with the worker."""
    digest = one.spec.digest
    wait_for(lambda: gateway.control.stats()[digest].in_flight == count, f"{count} in flight")


@many_cores
def test_a_short_request_overtakes_a_long_one(gateway, tmp_path):
    """While one core computes for seconds another answers."""
    one = long_model(tmp_path)
    pid = gateway.control.serve(one).pid
    asking = Asking(gateway, rounds(10**9))  # does not end by itself
    in_flight(gateway, one, 1)
    for _ in range(5):
        assert gateway.infer(rounds(1))[0] == 200
    assert asking.result is None
    os.kill(pid, signal.SIGKILL)
    gateway.control.wait_event("worker_died")
    in_flight(gateway, one, 1)  # asked again of the new worker, alone
    waiting = Asking(gateway, rounds(1))
    in_flight(gateway, one, 2)
    pid = gateway.control.wait_event("restarted") and gateway.control.load(one).pid
    os.kill(pid, signal.SIGKILL)
    status, body = asking.answer()
    assert (status, body["code"]) == (500, "worker_crashed")
    assert waiting.answer()[0] == 200


@many_cores
def test_all_that_ran_at_once_is_replayed(gateway, tmp_path):
    """A worker killed in the middle of several runs: each is answered, and counted once."""
    one = long_model(tmp_path)
    pid = gateway.control.serve(one).pid
    askings = [Asking(gateway, rounds(6_000)) for _ in range(4)]
    in_flight(gateway, one, 4)
    os.kill(pid, signal.SIGKILL)
    assert [asking.answer()[0] for asking in askings] == [200] * 4
    counted = gateway.control.stats()[one.spec.digest]
    assert (counted.requests, counted.replayed, counted.crashes) == (4, 4, 1)


def test_a_deadline_passes_in_the_queue_of_a_long_model(gateway, tmp_path):
    """What comes too late is answered 504 and not run."""
    one = long_model(tmp_path)
    gateway.control.serve(one)
    body = json.dumps(rounds(9_000))
    askings = [Asking(gateway, body) for _ in range(8)]
    in_flight(gateway, one, 8)
    status, answer, _ = gateway.infer(rounds(1), headers={"Inference-Timeout-Ms": "20"})
    assert (status, answer["code"]) == (504, "deadline")
    assert [asking.answer()[0] for asking in askings] == [200] * 8


@many_cores
def test_a_package_s_memory_is_enough_for_one_run_at_a_time(gateway, tmp_path):
    """Where two runs do not fit into the package's limit, they are done one after the other."""
    one = package(tmp_path, greedy(150), limits=Limits(memory_mb=700))
    gateway.control.serve(one)
    askings = [Asking(gateway, fp32("x", [1.0])) for _ in range(6)]
    assert [asking.answer()[0] for asking in askings] == [200] * 6
    assert gateway.control.stats()[one.spec.digest].server_errors == 0


def test_a_job_alone_is_alone():
    """What stands before it has ended, and what stands after it waits."""
    pool = Pool(4)
    running, seen, lock, done = [0], [], threading.Lock(), threading.Event()
    gate = threading.Barrier(2)

    def job(name: str, meets: bool = False):
        def work() -> None:
            with lock:
                running[0] += 1
                seen.append((name, running[0]))
            if meets:
                gate.wait(10)
            with lock:
                running[0] -= 1
            if name == "last":
                done.set()

        return work

    pool.put(job("a", meets=True), alone=False)
    pool.put(job("b", meets=True), alone=False)
    pool.put(job("alone"), alone=True)
    pool.put(job("last"), alone=False)
    assert done.wait(10)
    assert seen == [("a", 1), ("b", 2), ("alone", 1), ("last", 1)]


def test_the_pace_is_a_median():
    """One slow run does not make a model long, most of them do, and it may become short again."""
    pace = Pace([1000] * 3)
    pace.ran(LONG_NS * 5)
    assert not pace.long
    for _ in range(5):
        pace.ran(LONG_NS * 5)
    assert pace.long
    for _ in range(9):
        pace.ran(1000)
    assert not pace.long
