"""What one client may hold, so that the others still have theirs."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import struct
import subprocess
import sys
import threading

import pytest

from edgefleet_agent.ipc import fast
from tests.agent.bounded import (
    CONNECTIONS,
    LIMIT,
    binary,
    closed,
    end_clients,
    start,
)
from tests.agent.fast_raw import Raw, memory
from tests.agent.gateways import Gateway, wait_for
from tests.agent.lent_client import GOOD, Client, lent, request_bytes
from tests.agent.test_fast_abuse import descriptors
from tests.agent.test_gateway_life import SHORT
from tests.agent.test_hostile_local import clients, memory_kb
from tests.models import linear, package, slow

MINE = CONNECTIONS // 2
LONG = {"inputs": [SHORT["inputs"][0] | {"data": [10_000]}]}
HALF_A_HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Le"
ASK = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost", timeout=10)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", "/v2/models/m/infer", sys.argv[2])
print(connection.getresponse().status)
"""


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    end_clients()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A gateway that no test outwaits."""
    one = start(tmp_path_factory.mktemp("packages"), "--timeout-s", "60")
    yield one
    one.close()


@pytest.fixture
def patient(lasting):
    """The same, with nobody connected."""

    def empty() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return clients(lasting) == 0
        return False

    wait_for(empty, "the clients of before to go")
    return lasting


def another_is_served(gateway: Gateway) -> bool:
    """Tell whether a client of another process gets its answer."""
    command = [sys.executable, "-c", ASK, str(gateway.uds), json.dumps(GOOD)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "200"


def test_answers_of_many_who_read_nothing_are_bounded_together(patient):
    """Beyond the bound the one that has read nothing for longest goes, whatever time it has."""
    before = memory_kb(patient.process.pid)
    many = [Client(patient) for _ in range(MINE)]
    for client in many:  # one after the other: their bodies are bounded too
        client.send(binary(60_000))
        wait_for(lambda client=client: select.select([client.sock], [], [], 0)[0], "its answer")
    # Of 480 kB each the kernel keeps 200; of what is left four longest bodies may wait.
    wait_for(lambda: sum(map(closed, many)) >= 3, "some to be closed")
    assert [closed(client) for client in many[-8:]] == [False] * 8
    assert memory_kb(patient.process.pid) - before < 20_000
    assert another_is_served(patient)


# ------------------------------------------------------------------- connections


def test_at_the_limit_the_longest_idle_goes(patient):
    """A new connection is served in its place; the others stay, also one that waits for long."""
    waiting = Client(patient)
    waiting.send(request_bytes(LONG, path="/v2/models/slow/infer"))
    wait_for(lambda: busy(patient), "the request to run")
    idle = [Client(patient) for _ in range(MINE - 1)]
    for client in idle:
        assert client.ask()[0] == 200
    assert idle[0].ask()[0] == 200  # now the second is the one that has been idle for longest
    fresh = Client(patient)
    assert fresh.ask()[0] == 200
    assert [closed(client) for client in idle] == [False, True, *[False] * (MINE - 3)]
    assert waiting.answer()[0] == 200


def busy(gateway: Gateway) -> bool:
    """Tell whether a worker has a request."""
    return any(one.in_flight for one in gateway.control.stats().values())


@pytest.mark.parametrize("tcp", [False, True])
def test_half_requests_lock_nobody_out(patient, tcp):
    """A process may have half of the connections, all of TCP as well: others find room."""
    many = []
    for _ in range(2 * CONNECTIONS):
        many.append(Client(patient, tcp=tcp))
        with contextlib.suppress(OSError):
            many[-1].send(HALF_A_HEAD)
    assert another_is_served(patient)
    wait_for(lambda: sum(map(closed, many)) >= CONNECTIONS + MINE, "the surplus to go")


def test_who_has_begun_a_request_goes_when_there_is_no_idle_one(patient):
    """After a second, so that a process that is slow itself can go on."""
    slow_ones = [Client(patient) for _ in range(MINE)]
    for client in slow_ones:
        client.send(HALF_A_HEAD)

    def served() -> bool:
        client = Client(patient)
        with contextlib.suppress(OSError):
            return client.ask()[0] == 200
        return False

    wait_for(served, "a place")
    wait_for(lambda: closed(slow_ones[0]), "the slowest to go")


def test_an_idle_connection_ends_in_time(tmp_path):
    """Also a lent one, and one of the fast path; half a request has its own deadline."""
    gateway = Gateway("--idle-timeout-s", "0.4", "--timeout-s", "2", "--lend-after", "4")
    try:
        pid = gateway.control.serve(package(tmp_path, linear(2.0))).pid
        mine = lent(gateway, pid)
        plain, frames = Client(gateway), Raw(gateway)
        assert plain.ask()[0] == 200
        for client in (plain, frames, mine):
            wait_for(lambda client=client: closed(client), "the connection to be closed")
        frames.close()
        assert gateway.infer(GOOD)[0] == 200
    finally:
        gateway.close()


# ------------------------------------------------------------------- requests


def test_bodies_are_refused_before_they_come(patient):
    """What is announced counts: beyond a process's share 503 says when to try again."""
    announced = request_bytes(b"x")[:-1].replace(b"Length: 1\r", b"Length: %d\r" % LIMIT)
    first, second, third = (Client(patient) for _ in range(3))
    for client in (first, second, third):
        client.send(announced)
    refused = third.answer()
    assert (refused[0], refused[1]["code"], third.headers["retry-after"]) == (503, "busy", "1")
    assert another_is_served(patient)
    for client in (first, second):
        client.close()
    wait_for(lambda: Client(patient).ask()[0] == 200, "room again")


def test_a_large_request_waits_outside_for_the_one_before(patient):
    """One body of a connection is held at a time, however many are sent behind it."""
    client = Client(patient)
    client.send(request_bytes(LONG, path="/v2/models/slow/infer"))
    wait_for(lambda: busy(patient), "the request to run")
    client.sock.setblocking(False)
    data = memoryview(binary(60_000))
    while data and select.select([], [client.sock], [], 0.3)[1]:
        data = data[client.sock.send(data) :]
    assert len(data) > 0
    client.sock.settimeout(20)
    client.sock.sendall(data)
    assert client.answer()[0] == 200
    assert received(client, 200)


def received(client: Client, status: int) -> bool:
    """Read one head, and say whether it is of that status."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.sock.recv(1 << 16)
    return got.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("together", [True, False])
def test_continue_comes_in_its_turn(patient, together):
    """After the answer to what was asked before, and not never."""
    client = Client(patient)
    before = request_bytes(LONG, path="/v2/models/slow/infer")
    asked, _, body = request_bytes(GOOD, extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    if together:
        client.send(before + asked + b"\r\n\r\n")
    else:
        client.send(before)
        wait_for(lambda: busy(patient), "the request to run")
        client.send(asked + b"\r\n\r\n")
    assert [client.answer()[0], client.answer()[0]] == [200, 100]
    client.send(body)
    assert client.answer()[0] == 200


def test_requests_on_lent_connections_count(tmp_path):
    """The queue limit is one of a model, whoever reads the connections."""
    gateway = Gateway("--queue-limit", "2", "--lend-after", "1")
    try:
        pid = gateway.control.serve(package(tmp_path, slow())).pid
        clients = [lent(gateway, pid, body=SHORT) for _ in range(2)]
        third = Client(gateway)
        for client in clients:
            client.send(request_bytes(LONG))
        wait_for(lambda: busy(gateway), "a request to run")
        status, refused = third.ask(SHORT)
        assert (status, refused["code"]) == (503, "queue_full")
        assert [client.answer()[0] for client in clients] == [200, 200]
        assert third.ask(SHORT)[0] == 200
    finally:
        gateway.close()


# ------------------------------------------------------------------- turns, descriptors


def test_cheap_requests_take_turns(patient):
    """Of a client that pipelines a thousand pages, others do not wait for the last."""
    count = 1500
    greedy, other = Client(patient), Client(patient)
    assert other.ask()[0] == 200
    ends = [0]

    def read() -> None:
        with contextlib.suppress(OSError):
            while part := greedy.sock.recv(1 << 16):
                ends[0] += part.count(b"HTTP/1.1 200")

    threading.Thread(target=read, daemon=True).start()
    greedy.send(b"GET /metrics HTTP/1.1\r\n\r\n" * count)
    other.send(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert other.answer()[0] == 200
    assert ends[0] < count // 2
    wait_for(lambda: ends[0] >= count - 5, "the pages")  # a few heads come in two parts


def test_descriptors_of_nobody_are_bounded_together(tmp_path):
    """Many clients, each with descriptors that belong to no slot yet, leave the process its own."""
    gateway = Gateway()
    try:
        gateway.control.serve(package(tmp_path, linear(2.0)))
        before = descriptors(gateway.process.pid)
        clients = [Raw(gateway) for _ in range(64)]
        begun = fast.prefix(fast.DROP, 1, 16)[:8]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS)]
        with memory() as fd:
            for one in clients:
                with contextlib.suppress(OSError):
                    one.sock.sendmsg([begun], [(*rights[0], struct.pack("8i", *[fd] * 8))])
        wait_for(lambda: sum(map(closed, clients)) >= 32, "half of them to be closed")
        assert descriptors(gateway.process.pid) - before <= 256 + 64
        assert gateway.infer(GOOD)[0] == 200
        for one in clients:
            one.close()
    finally:
        gateway.close()
