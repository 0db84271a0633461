"""Lent connections when the route moves, a worker dies or hangs, or the gateway ends."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from edgefleet_agent.ipc import control
from tests.agent.gateways import Gateway, wait_for
from tests.agent.lent_client import GOOD, Client, held, lent, request_bytes
from tests.agent.test_gateway_life import LONG, SHORT, in_flight
from tests.models import linear, package, slow


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    Client.close_all()


@pytest.fixture
def eager():
    """A gateway that lends a connection after its first answer."""
    one = Gateway("--lend-after", "1")
    yield one
    one.close()


def pair(folder, model=None):
    """Two versions of one model: times 1 and times 2, or the given one twice."""
    return (
        package(folder, model or linear(1.0), version="1.0.0"),
        package(folder, model or linear(2.0), version="2.0.0"),
    )


def test_a_flip_comes_between_two_requests(eager, tmp_path):
    """Of requests in a bundle the first are answered by the old version, the rest by the new."""
    old, new = pair(tmp_path)
    pid = eager.control.serve(old).pid
    assert eager.control.load(new).ok
    for _ in range(5):
        client = lent(eager, pid)
        sender = threading.Thread(target=client.send, args=(request_bytes(GOOD) * 2000,))
        sender.start()
        first = client.answer()[1]["model_version"]
        assert isinstance(eager.control.ask(control.Flip, "m", new.spec.digest), control.Flipped)
        versions = [first] + [client.answer()[1]["model_version"] for _ in range(1999)]
        sender.join()
        assert versions == sorted(versions, reverse=first > "1.0.0")
        assert client.ask()[1]["model_version"] == new.spec.version
        client.close()
        old, new = new, old
        pid = {w.version: w.pid for w in eager.control.ask(control.Hello).workers}[old.spec.version]


def test_half_a_request_at_a_flip(eager, tmp_path):
    """What the old worker had read of it goes to the new one."""
    old, new = pair(tmp_path)
    pid = eager.control.serve(old).pid
    assert eager.control.load(new).ok
    client = lent(eager, pid)
    whole = request_bytes(GOOD)
    client.send(whole[:-20])
    client.read_by_the_other_side()
    eager.control.ask(control.Flip, "m", new.spec.digest)
    assert eager.control.ask(control.Release, old.spec.digest).ok
    client.send(whole[-20:])
    status, answer = client.answer()
    assert (status, answer["model_version"]) == (200, "2.0.0")
    client.close()


def test_a_request_that_runs_at_a_flip_ends_where_it_began(eager, tmp_path):
    """It counts as in flight, and `Release` waits for it."""
    old, new = pair(tmp_path, slow())
    pid = eager.control.serve(old).pid
    assert eager.control.load(new).ok
    client = lent(eager, pid, body=SHORT)
    client.send(request_bytes(LONG))
    in_flight(eager, old)
    flipped = eager.control.ask(control.Flip, "m", new.spec.digest)
    assert (flipped.previous, flipped.in_flight) == (old.spec.digest, 1)
    assert eager.control.ask(control.Release, old.spec.digest).ok
    status, answer = client.answer()
    assert (status, answer["model_version"]) == (200, "1.0.0")
    assert client.ask(SHORT)[1]["model_version"] == "2.0.0"
    client.close()


@pytest.mark.parametrize("standby", [True, False])
def test_a_crash_in_a_lent_request(eager, tmp_path, standby):
    """It is asked again of the standby, or of the restarted worker; the next one as well."""
    old, new = pair(tmp_path, slow())
    if standby:
        eager.control.serve(old)
    pid = eager.control.serve(new).pid
    client = lent(eager, pid, body=SHORT)
    client.send(request_bytes(LONG) + request_bytes(SHORT))
    in_flight(eager, new)
    os.kill(pid, signal.SIGKILL)
    status, answer = client.answer()
    assert (status, answer["model_version"]) == (200, "1.0.0" if standby else "2.0.0")
    assert client.answer()[0] == 200
    eager.control.wait_event("restarted")
    counted = eager.control.stats()[new.spec.digest]
    assert (counted.crashes, counted.replayed) == (1, 1)
    assert client.ask(SHORT)[1]["model_version"] == "2.0.0"
    client.close()


def test_a_lent_request_that_two_workers_died_on_is_given_up(eager, tmp_path):
    """It is replayed once; other connections of the dead worker are served on."""
    old, new = pair(tmp_path, slow())
    first = eager.control.serve(old).pid
    pid = eager.control.serve(new).pid
    client = lent(eager, pid, body=SHORT)
    other = lent(eager, pid, body=SHORT)
    client.send(request_bytes(LONG))
    in_flight(eager, new)
    os.kill(pid, signal.SIGKILL)
    in_flight(eager, old)
    os.kill(first, signal.SIGKILL)
    status, answer = client.answer()
    assert (status, answer["code"]) == (500, "worker_crashed")
    assert other.ask(SHORT)[0] == 200
    assert client.ask(SHORT)[0] == 200
    client.close()
    other.close()


def test_a_worker_that_hangs_on_a_lent_request_is_replaced(tmp_path):
    """The request gets 504; what waits on other connections of that worker is answered."""
    gateway = Gateway("--timeout-s", "3", "--lend-after", "1")
    try:
        only = package(tmp_path, slow())
        pid = gateway.control.serve(only).pid
        client, other = (lent(gateway, pid, body=SHORT) for _ in range(2))
        client.send(request_bytes({"inputs": [LONG["inputs"][0] | {"data": [10**12]}]}))
        in_flight(gateway, only)
        other.send(request_bytes(SHORT))
        status, answer = client.answer()
        assert (status, answer["code"]) == (504, "deadline")
        assert other.answer()[0] == 200
        assert gateway.control.wait_event("restarted").digest == only.spec.digest
        client.close()
        other.close()
    finally:
        gateway.close()


def test_a_worker_that_stops_is_replaced(tmp_path):
    """Stopped (SIGSTOP) between two requests: what is sent meanwhile is answered by the next."""
    gateway = Gateway("--timeout-s", "3", "--lend-after", "1")
    try:
        only = package(tmp_path, linear(1.0))
        pid = gateway.control.serve(only).pid
        client = lent(gateway, pid)
        os.kill(pid, signal.SIGSTOP)
        assert client.ask()[0] == 200
        assert "SIGKILL" in gateway.control.wait_event("worker_died").message
        client.close()
    finally:
        gateway.close()


def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    """Two clients at full speed, twelve kills: each request has one answer, and the right one."""
    gateway = Gateway("--lend-after", "1")
    packages = [package(tmp_path, linear(1.0), version=f"{n}.0.0") for n in range(1, 7)]
    stop = threading.Event()
    wrong: list = []
    asked = [0] * 2

    def client(index: int) -> None:
        one = Client(gateway)
        while not stop.is_set():
            asked[index] += 1
            value = asked[index] % 1000
            body = {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value, 0, 0, 0]}
                ]
            }
            status, answer = one.ask(body)
            if status != 200 or answer["outputs"][0]["data"] != [value, value]:
                wrong.append((status, answer, value))
                return
        one.close()

    try:
        pid = gateway.control.serve(packages[0]).pid
        threads = [threading.Thread(target=client, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for number, one in enumerate(packages):
            for _ in range(2):
                wait_for(lambda pid=pid: held(pid) == 2 or wrong, "two lent connections")
                os.kill(pid, signal.SIGKILL)
                gateway.control.wait_event("restarted")
                pid = gateway.control.load(one).pid
            if number + 1 < len(packages):
                pid = gateway.control.serve(packages[number + 1]).pid
                assert gateway.control.ask(control.Release, one.spec.digest).ok
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        gateway.close()
    assert wrong == []
    assert min(asked) > 10


def test_the_end_waits_for_a_lent_request(tmp_path):
    """SIGTERM lets it finish, closes idle ones, and leaves no process."""
    gateway = Gateway("--lend-after", "1")
    try:
        only = package(tmp_path, slow())
        pid = gateway.control.serve(only).pid
        client, idle = (lent(gateway, pid, body=SHORT) for _ in range(2))
        client.send(request_bytes(LONG))
        in_flight(gateway, only)
        gateway.process.send_signal(signal.SIGTERM)
        assert client.answer()[0] == 200
        assert idle.answer()[0] == 0
        assert gateway.process.wait(10) == 0
        assert not Path(f"/proc/{pid}").exists()
    finally:
        gateway.close()
