"""The fast path through crashes, swaps and many clients: nothing is lost and nothing is kept."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from edgefleet_agent.client import Client, InferenceError, ModelFailedError
from edgefleet_agent.ipc import control, fast
from tests.agent.fast_raw import Raw, head, memory
from tests.agent.gateways import Gateway, wait_for
from tests.models import linear, logarithm, package, slow

WIDE = 50_000
LOTS = 100_000


def worker(gateway: Gateway, model: str = "m") -> int:
    """Return the pid of a model's active worker."""

    def find() -> int:
        state = gateway.control.ask(control.Hello)
        return next(w.pid for w in state.workers if w.model == model and w.role == "active")

    return wait_for(find, "a worker")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def none_more(pids: list[int], before: list[int]) -> bool:
    """Whether no process has more descriptors than before."""
    return all(descriptors(pid) <= count for pid, count in zip(pids, before, strict=True))


def shared_kb(pid: int) -> int:
    """Return kilobytes of applications' memory that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in maps if "memfd:edgefleet" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans) // 1024


def test_a_request_is_asked_again_when_its_worker_dies(gateway, tmp_path):
    """Its memory is still there: the next worker gets the descriptor and gives the answer."""
    gateway.control.serve(package(tmp_path, slow()))
    first = worker(gateway)
    raw = Raw(gateway)
    with memory(8) as rounds, memory(4) as result:
        os.pwrite(rounds, np.array([30_000], np.int64).tobytes(), 0)
        assert raw.slot(0, rounds, 8) is None
        assert raw.slot(1, result, 4, fast.WRITE) is None
        given = fast.Tensor("rounds", "INT64", (1,), 0, 0, 8)
        raw.send(fast.INFER, head(given, areas=[fast.Tensor("y", "", (), 1, 0, 4)]))
        wait_for(lambda: stat(gateway).in_flight, "the request to be taken")
        os.kill(first, signal.SIGKILL)
        kind, _, body = raw.receive()
        assert kind == fast.ANSWER
        (output,) = fast.decode_head(body).tensors
        assert (output.slot, output.offset, output.length) == (1, 0, 4)
        assert np.frombuffer(os.pread(result, 4, 0), np.float32)[0] == np.float32(1 / 128)
    raw.close()
    assert stat(gateway).replayed == 1
    assert worker(gateway) != first


def stat(gateway: Gateway) -> control.DigestStats:
    """Return the only digest's counters."""
    (one,) = gateway.control.stats().values()
    return one


def test_memory_survives_the_worker_that_had_mapped_it(gateway, tmp_path):
    """After a crash slots are handed to the next worker, and answers come as before."""
    gateway.control.serve(package(tmp_path, linear(2.0, WIDE)))
    with Client(gateway.uds) as client:
        x = client.buffer((1, WIDE), np.float32)
        for value in (1.0, 2.0, 3.0):
            x[:] = value
            assert np.allclose(client.infer("m", {"x": x})["y"], 2 * value * WIDE)
            if value < 3:
                pid = worker(gateway)
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda gone=pid: worker(gateway) not in {0, gone}, "a restart")


def test_a_request_that_kills_two_workers_is_given_up(gateway, tmp_path):
    """It is the model's failure then, and the client hears so."""
    gateway.control.serve(package(tmp_path, slow()))
    failed = []

    def ask() -> None:
        with Client(gateway.uds) as client:
            try:
                client.infer("m", {"rounds": np.array([10**6])})
            except InferenceError as error:
                failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    gone = 0
    for _ in range(2):
        wait_for(
            lambda old=gone: worker(gateway) != old and stat(gateway).in_flight, "it to be asked"
        )
        gone = worker(gateway)
        os.kill(gone, signal.SIGKILL)
    thread.join(30)
    assert [type(error) for error in failed] == [ModelFailedError]
    assert failed[0].code == "worker_crashed"


def test_no_request_fails_while_versions_are_swapped(gateway, tmp_path):
    """Ten swaps under clients with large inputs and outputs: every answer is one version's."""
    one = package(tmp_path, linear(1.0, WIDE), version="1.0.0")
    two = package(tmp_path, linear(2.0, WIDE), version="2.0.0")
    gateway.control.serve(one)
    over = threading.Event()
    wrong: list[object] = []
    counts = [0, 0]

    def ask(index: int) -> None:
        with Client(gateway.uds) as client:
            x = client.buffer((1, WIDE), np.float32)
            x[:] = 1
            while not over.is_set():
                try:
                    result = client.infer("m", {"x": x})
                except InferenceError as error:
                    wrong.append(error)
                    return
                scale = {"1.0.0": 1.0, "2.0.0": 2.0}[result.version]
                if not np.allclose(result["y"], scale * WIDE):
                    wrong.append(result)
                counts[index] += 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        old, new = (one, two) if turn % 2 == 0 else (two, one)
        gateway.control.serve(new)
        before = sum(counts)
        wait_for(lambda b=before: sum(counts) > b + 5 or wrong, "answers of the new version")
        assert gateway.control.ask(control.Release, old.spec.digest).ok
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(counts) > 10


def test_a_swap_to_another_shape_of_output_is_followed(gateway, tmp_path):
    """Outputs that no longer fit the memory kept for them come all the same."""
    gateway.control.serve(package(tmp_path, logarithm(), version="1.0.0"))
    with Client(gateway.uds) as client:
        for size in (LOTS, LOTS, 3 * LOTS, 10, LOTS // 2, 3 * LOTS):
            x = np.arange(1, size + 1, dtype=np.float32)
            assert np.allclose(client.infer("m", {"x": x})["y"], np.log(x))


def test_nothing_is_kept_of_requests_and_clients_that_are_over(gateway, tmp_path):
    """1,000 requests and 100 connections leave no descriptor and no mapping in any process."""
    gateway.control.serve(package(tmp_path, linear(1.0, WIDE)))
    pids = [gateway.process.pid, worker(gateway), os.getpid()]
    x = np.ones((1, WIDE), np.float32)
    with Client(gateway.uds) as client:
        client.infer("m", {"x": x})
    wait_for(lambda: not shared_kb(pids[1]), "the first client's memory to go")
    gc.collect()
    before = [descriptors(pid) for pid in pids]
    with Client(gateway.uds) as client:
        for _ in range(1000):
            client.infer("m", {"x": x})
        assert shared_kb(pids[1]) < 1024  # one input, again and again
        assert descriptors(pids[1]) <= before[1] + 1  # the connection itself, which it was lent
    for _ in range(100):
        with Client(gateway.uds) as client:
            client.infer("m", {"x": client.buffer((1, WIDE), np.float32)})
    gc.collect()
    wait_for(lambda: not shared_kb(pids[1]), "the memory of all clients to go")
    wait_for(lambda: none_more(pids, before), "the descriptors to go")
    assert shared_kb(os.getpid()) == 0


def test_a_client_that_dies_leaves_nothing(gateway, tmp_path):
    """SIGKILL of an application in the middle of a request frees its slots and its place."""
    gateway.control.serve(package(tmp_path, slow()))
    pids = [gateway.process.pid, worker(gateway)]
    with Client(gateway.uds) as client:  # a worker that has answered has opened all that it needs
        client.infer("m", {"rounds": np.array([1])})
    before = [descriptors(pid) for pid in pids]
    child = os.fork()
    if not child:
        try:
            client = Client(gateway.uds)
            client.infer("m", {"rounds": np.array([10_000])})
        finally:
            os._exit(0)
    wait_for(lambda: stat(gateway).in_flight, "the request to be taken")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: none_more(pids, before), "the descriptors to go")
    deadline = time.monotonic() + 30
    with Client(gateway.uds) as client:  # waits for the worker, which finishes what it began
        assert client.infer("m", {"rounds": np.array([1])})["y"].shape == (1, 1)
    assert time.monotonic() < deadline


def test_a_client_hears_when_the_gateway_dies(gateway, tmp_path):
    """SIGKILL of the gateway in the middle of a request is an error at once, not a hang."""
    gateway.control.serve(package(tmp_path, slow()))
    heard = []

    def ask() -> None:
        with Client(gateway.uds) as client:
            try:
                client.infer("m", {"rounds": np.array([10**6])})
            except InferenceError as error:
                heard.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: stat(gateway).in_flight, "the request to be taken")
    gateway.process.kill()
    thread.join(20)
    assert heard == ["gateway_gone"]
