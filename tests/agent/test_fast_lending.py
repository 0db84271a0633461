"""Connections of the fast path that a worker answers itself: lent, taken back, never lost."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np

from edgefleet_agent.client import AsyncClient, Client
from edgefleet_agent.ipc import fast
from tests.agent.fast_raw import Raw, head, memory
from tests.agent.gateways import wait_for
from tests.agent.test_fast_life import descriptors, stat, worker
from tests.models import linear, package, slow

ONE = np.ones((1, 4), np.float32)
X = fast.Tensor("x", "FP32", (1, 4), fast.INLINE, 0, 16)


def lent(raw: Raw, pid: int, send) -> None:
    """Ask until the worker has the connection."""
    send()  # a worker that has answered has opened all that it needs
    assert raw.receive()[0] == fast.ANSWER
    before = descriptors(pid)

    def ask() -> bool:
        send()
        assert raw.receive()[0] == fast.ANSWER
        return descriptors(pid) > before

    wait_for(ask, "the connection to be lent")


def test_a_connection_that_asks_again_and_again_is_lent_and_counted(gateway, tmp_path):
    """The worker answers it; counters, another model and slots find it as if it were not."""
    gateway.control.serve(package(tmp_path, linear(2.0)))
    raw, asked = Raw(gateway), [0]

    def send() -> None:
        asked[0] += 1
        raw.send(fast.INFER, head(X), ONE.tobytes())

    lent(raw, worker(gateway), send)
    for _ in range(20):
        send()
        _, number, body = raw.receive()
        (output,) = fast.decode_head(body[:-8]).tensors
        assert number == raw.number
        assert output.shape == (1, 2)
        assert np.frombuffer(body[-8:], np.float32).tolist() == [8.0, 8.0]
    wait_for(lambda: stat(gateway).requests == asked[0], "its count, which follows the answer")
    number = raw.send(fast.INFER, head(X, model="other"), ONE.tobytes())
    assert raw.refusal(number).code == "other_model"
    raw.close()


def test_slots_may_be_offered_on_a_lent_connection(gateway, tmp_path):
    """HOLD brings it back, SLOT is taken, and the next requests use the memory, lent anew."""
    gateway.control.serve(package(tmp_path, linear(2.0)))
    raw = Raw(gateway)
    pid = worker(gateway)
    lent(raw, pid, lambda: raw.send(fast.INFER, head(X), ONE.tobytes()))
    with memory(16) as given, memory(8) as result:
        assert raw.slot(0, given, 16) is None
        assert raw.slot(1, result, 8, fast.WRITE) is None
        request = head(X._replace(slot=0), areas=[fast.Tensor("y", "", (), 1, 0, 8)])
        for value in range(30):
            os.pwrite(given, np.full(4, value, np.float32).tobytes(), 0)
            raw.send(fast.INFER, request)
            assert raw.receive()[0] == fast.ANSWER
            assert np.frombuffer(os.pread(result, 8, 0), np.float32).tolist() == [8.0 * value] * 2
    assert descriptors(pid) > 0
    raw.close()


def test_a_request_on_a_lent_connection_outlives_its_worker(gateway, tmp_path):
    """SIGKILL in the middle of it: the gateway goes on where the worker was, on the next one."""
    gateway.control.serve(package(tmp_path, slow()))
    first = worker(gateway)
    raw = Raw(gateway)
    with memory(8) as rounds:
        assert raw.slot(0, rounds, 8) is None
        os.pwrite(rounds, np.array([1], np.int64).tobytes(), 0)
        request = head(fast.Tensor("rounds", "INT64", (1,), 0, 0, 8))
        lent(raw, first, lambda: raw.send(fast.INFER, request))
        os.pwrite(rounds, np.array([30_000], np.int64).tobytes(), 0)
        raw.send(fast.INFER, request)
        wait_for(lambda: stat(gateway).in_flight, "the request to begin")
        os.kill(first, signal.SIGKILL)
        kind, number, _ = raw.receive()
    assert (kind, number) == (fast.ANSWER, raw.number)
    assert stat(gateway).replayed == 1
    raw.close()


def test_a_client_may_turn_to_another_model(gateway, tmp_path):
    """Also after its connection was lent: both clients go on, with requests under way."""
    gateway.control.serve(package(tmp_path, linear(1.0), name="a"))
    gateway.control.serve(package(tmp_path, linear(2.0), name="b"))
    with Client(gateway.uds) as client:
        for name, factor in (("a", 4), ("b", 8), ("a", 4)):
            for _ in range(20):
                assert client.infer(name, {"x": ONE})["y"].tolist() == [[factor] * 2]

    async def ask() -> None:
        async with AsyncClient(gateway.uds) as client:
            for _ in range(20):
                await client.infer("a", {"x": ONE})
            names = ["a", "b"] * 20
            found = await asyncio.gather(*(client.infer(name, {"x": ONE}) for name in names))
            for name, result in zip(names, found, strict=True):
                assert result["y"].tolist() == [[4.0 if name == "a" else 8.0] * 2]

    asyncio.run(ask())
