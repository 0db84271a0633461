"""Connections that a worker answers itself: lent, taken back, and never at a client's cost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from edgefleet_agent.ipc import control
from tests.agent.gateways import Gateway, wait_for
from tests.agent.lent_client import GOOD, Client, held, lent, request_bytes
from tests.agent.test_gateway_abuse import BOMBS, HEADS
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


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Such a gateway, model `m` (times 2), and its worker's pid, for all tests that break none."""
    one = Gateway("--lend-after", "1", "--max-body-bytes", "1000000", "--timeout-s", "2")
    folder = tmp_path_factory.mktemp("packages")
    pid = one.control.serve(package(folder, linear(2.0))).pid
    one.control.serve(package(folder, linear(3.0), name="other"))
    yield one, pid
    one.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_answers_and_counters_are_as_without(serving, tcp):
    """What a worker answers itself looks the same and is counted the same, errors too."""
    gateway, pid = serving
    before = {s.model: s for s in gateway.control.stats().values()}["m"]
    client = lent(gateway, pid, tcp=tcp)
    relayed = gateway.infer(GOOD)
    assert (client.ask()) == relayed[:2]
    assert set(client.headers) == {name.lower() for name in relayed[2]}
    bad = {"inputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}
    assert client.ask(bad) == gateway.infer(bad)[:2]
    assert held(pid) == 1
    after = {s.model: s for s in gateway.control.stats().values()}["m"]
    assert after.client_errors - before.client_errors == 2
    counted = after.requests - before.requests
    assert counted >= 3
    assert sum(after.latency.values()) == sum(after.compute.values()) == after.requests
    client.close()
    wait_for(lambda: held(pid) == 0, "the worker to let go of a closed connection")


def test_a_connection_is_lent_after_some_requests_in_a_row(gateway, tmp_path):
    """Four in a row to one model, not four in all: who alternates is relayed."""
    pids = {
        name: gateway.control.serve(package(tmp_path, linear(1.0), name=name)).pid
        for name in ("m", "other")
    }
    client = Client(gateway)
    for _ in range(5):
        assert client.ask()[0] == 200
        assert client.ask(path="/v2/models/other/infer")[0] == 200
    assert [held(pid) for pid in pids.values()] == [0, 0]
    for _ in range(6):
        assert client.ask()[0] == 200
    assert [held(pid) for pid in pids.values()] == [1, 0]
    client.close()


def test_another_model_s_request_ends_a_connection_that_was_lent(serving):
    """It is answered, and the connection closed: the first model's worker may keep a copy."""
    gateway, pid = serving
    client = lent(gateway, pid)
    status, answer = client.ask(path="/v2/models/other/infer")
    assert (status, answer["model_name"]) == (200, "other")
    assert client.headers["connection"] == "close"
    assert client.answer()[0] == 0


ODD = {
    "a document": (b"GET /v2/models/m HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "no such path": (b"GET /v3 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "its own version": (request_bytes(GOOD, "/v2/models/m/versions/1.0.0/infer"), 200),
    "no such version": (request_bytes(GOOD, "/v2/models/m/versions/7.0.0/infer"), 404),
    "a deadline": (request_bytes(GOOD, extra="Inference-Timeout-Ms: 1000\r\n"), 200),
    "a long head": (request_bytes(GOOD, extra=f"X: {'a' * 9000}\r\n"), 200),
    "a large body": (request_bytes(b" " * 100_000), 400),
    "a target written otherwise": (request_bytes(GOOD, "/v2/models/%6d/infer?a=b"), 200),
}


@pytest.mark.parametrize("case", ODD)
def test_what_a_worker_does_not_answer_the_gateway_does(serving, case):
    """The connection comes back with what was read from it, and goes on with the next request."""
    gateway, pid = serving
    data, want = ODD[case]
    client = lent(gateway, pid)
    client.send(data + request_bytes(GOOD))
    assert client.answer()[0] == want
    assert client.answer()[0] == 200
    client.close()


def test_an_answer_that_does_not_fit_comes_through_the_gateway(serving):
    """An answer of more than 64 KiB on a lent connection, and the next one, are whole."""
    gateway, pid = serving
    client = lent(gateway, pid)
    rows = 3000
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [1] * 4 * rows}]
    }
    for _ in range(2):
        status, answer = client.ask(body)
        assert (status, answer["outputs"][0]["data"]) == (200, [8.0] * 2 * rows)
    assert client.ask()[0] == 200
    client.close()


def test_a_client_that_waits_for_continue_gets_it(serving):
    """`Expect: 100-continue` on a lent connection is the gateway's to answer."""
    gateway, pid = serving
    client = lent(gateway, pid)
    whole = request_bytes(GOOD, extra="Expect: 100-continue\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.answer()[0] == 100
    client.send(body)
    assert client.answer()[0] == 200
    client.close()


@pytest.mark.parametrize("case", HEADS)
def test_a_bad_head_is_refused_as_on_any_connection(serving, case):
    """One 400, then the end: a worker takes nothing for a request that the gateway would not."""
    gateway, pid = serving
    client = lent(gateway, pid)
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n%s\r\nhello" % HEADS[case]
    client.send(head + b"GET /v2 HTTP/1.1\r\n\r\n")
    assert client.answer()[0] == 400
    assert client.answer()[0] == 0


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_on_a_lent_connection_is_the_client_s_fault(serving, case):
    """It gets 400 and speaks for nothing against the model."""
    gateway, pid = serving
    client = lent(gateway, pid)
    status, answer = client.ask(BOMBS[case])
    assert (status, answer["code"]) == (400, "invalid_request")
    assert client.ask()[0] == 200
    assert all(stats.server_errors == 0 for stats in gateway.control.stats().values())
    client.close()


def test_requests_in_pieces_and_in_bundles(serving):
    """Byte by byte, and many at once with a broken one at the end: each is answered in order."""
    gateway, pid = serving
    client = lent(gateway, pid)
    for byte in request_bytes(GOOD):
        client.send(bytes([byte]))
    assert client.answer()[0] == 200
    assert held(pid) == 1
    client.send(request_bytes(GOOD) * 300 + b"nonsense\r\n\r\n")
    assert [client.answer()[0] for _ in range(302)] == [200] * 300 + [400, 0]


def test_a_client_that_never_ends_its_request_is_told(serving):
    """A lent connection with half a request is taken back, and gets 408 like any other."""
    gateway, pid = serving
    client = lent(gateway, pid)
    client.send(request_bytes(GOOD)[:-5])
    assert client.answer()[0] == 408
    assert held(pid) == 0


def test_a_client_that_does_not_read_disturbs_nobody(serving):
    """Its connection comes back with the answer that did not go out, and no byte is missing."""
    gateway, pid = serving
    client = lent(gateway, pid)
    asked = 4000
    sender = threading.Thread(target=client.send, args=(request_bytes(GOOD) * asked,))
    sender.start()
    wait_for(lambda: held(pid) == 0, "the connection to come back")
    assert gateway.infer(GOOD)[0] == 200
    assert {client.answer()[0] for _ in range(asked)} == {200}
    sender.join()
    client.close()


def test_more_connections_than_a_worker_holds(serving):
    """Those beyond are relayed; all are answered, and all let go in the end."""
    gateway, pid = serving
    clients = [Client(gateway) for _ in range(80)]
    for _ in range(3):
        for client in clients:
            client.send(request_bytes(GOOD))
        assert {client.answer()[0] for client in clients} == {200}
    assert held(pid) == 64
    for client in clients:
        client.close()
    wait_for(lambda: held(pid) == 0, "the worker to let go of all")


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
    gateway = Gateway("--timeout-s", "1", "--lend-after", "1")
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
    gateway = Gateway("--timeout-s", "0.5", "--lend-after", "1")
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
    """Four clients at full speed, twelve kills: each request has one answer, and the right one."""
    gateway = Gateway("--lend-after", "1")
    packages = [package(tmp_path, linear(1.0), version=f"{n}.0.0") for n in range(1, 7)]
    stop = threading.Event()
    wrong: list = []
    asked = [0] * 4

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
        threads = [threading.Thread(target=client, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for number, one in enumerate(packages):
            for _ in range(2):
                wait_for(lambda pid=pid: held(pid) == 4 or wrong, "four lent connections")
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
