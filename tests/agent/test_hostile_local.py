"""A hostile application on the device: what it sends costs itself, and nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from edgefleet_agent.gateway.endpoints import parse_target
from edgefleet_agent.ipc import fast, loans
from tests.agent.fast_raw import Raw, head, memory
from tests.agent.gateways import Gateway, wait_for
from tests.agent.lent_client import GOOD, Client, lent, request_bytes
from tests.agent.test_gateway_life import SHORT, in_flight
from tests.models import linear, package, slow

TENSOR = fast.Tensor("x", "FP32", (1, 4), fast.INLINE, 0, 16)
DATA = struct.pack("<4f", 1, 2, 3, 4)
TIMEOUT_S = 1.0


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    Client.close_all()


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """A gateway that relays, with model `m`, for all tests that break none."""
    one = Gateway("--lend-after", "0", "--timeout-s", str(TIMEOUT_S), "--max-body-bytes", "1000000")
    one.control.serve(package(tmp_path_factory.mktemp("packages"), linear(2.0)))
    yield one
    one.close()


def frame(timeout_us: int = 0) -> bytes:
    """Return a good request of the fast path."""
    asked = head(TENSOR)
    return fast.prefix(fast.INFER, 7, len(asked), len(DATA), timeout_us) + asked + DATA


def memory_kb(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("timeout_us", [1 << 53, (1 << 64) - 1])
def test_a_deadline_beyond_all_clocks(serving, timeout_us):
    """It is one like any other; before, the request stayed open for ever and was not answered."""
    client = Raw(serving)
    client.sock.sendall(frame(timeout_us))
    assert client.receive()[0] == fast.ANSWER
    assert all(stats.in_flight == 0 for stats in serving.control.stats().values())
    client.close()


def test_head_has_no_body(serving):
    """HEAD gets the head that GET has; a body would be taken for the next answer."""
    client = Client(serving)
    client.send(b"HEAD /v2/health/live HTTP/1.1\r\n\r\nGET /v2/health/live HTTP/1.1\r\n\r\n")
    got = b""
    while not got.endswith(b'{"live":true}'):
        got += client.sock.recv(65536)
    first, second, body = got.split(b"\r\n\r\n")
    assert first == second
    assert (first.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b'{"live":true}')
    client.send(b"HEAD /v2/models/m/infer HTTP/1.1\r\n\r\n")
    assert client.sock.recv(65536).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "asked",
    [
        b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        request_bytes(GOOD, extra="Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    ],
)
def test_an_upgrade_has_one_answer(serving, asked):
    """It is refused, once, and the connection closes."""
    client = Client(serving)
    client.send(asked)
    assert client.answer()[0] == 400
    assert client.answer()[0] == 0


def straddled(whole: bytes, cut: int, send, answered) -> None:
    """Send requests in parts that each end within one, for twice the gateway's patience."""
    send(whole[:cut])
    end = time.monotonic() + 2 * TIMEOUT_S
    while time.monotonic() < end:
        send(whole[cut:] + whole[:cut])
        assert answered()


def test_each_request_has_its_own_time_to_come(serving):
    """A client whose parts always end within a request is slow with none of them."""
    client = Client(serving)
    straddled(request_bytes(GOOD), 40, client.send, lambda: client.answer()[0] == 200)


def test_each_frame_has_its_own_time_to_come(serving):
    """So is one of the fast path."""
    client = Raw(serving)
    straddled(frame(), 50, client.sock.sendall, lambda: client.receive()[0] == fast.ANSWER)
    client.close()


def test_what_is_remembered_is_bounded(serving):
    """Heads of 33 kB, each another, and as long targets are not kept: nor is their memory."""
    before = memory_kb(serving.process.pid)
    client, plain = Raw(serving), Client(serving)
    for index in range(64):
        areas = [fast.Tensor(f"{n}-{index}", "", (), fast.INLINE, 0, 0) for n in range(1000)]
        asked = fast.encode_head(fast.Head("m", "", (TENSOR,), tuple(areas), every=True))
        client.send(fast.INFER, asked, DATA)
        assert client.receive()[0] == fast.ANSWER
        plain.send(b"GET /v2/models/%d%s HTTP/1.1\r\n\r\n" % (index, b"a" * 60_000))
        assert plain.answer()[0] == 404
    assert memory_kb(serving.process.pid) - before < 6_000
    assert parse_target(b"/v2/models/m/" + b"x" * 600).kind == ""
    client.close()


def test_requests_that_wait_are_bounded(serving):
    """Of many clients that pipeline small ones and read nothing, some are refused; others not."""
    bundle = b"GET / HTTP/1.1\r\n\r\n" * 6000
    flooding = [Client(serving) for _ in range(24)]
    for client in flooding:
        client.sock.settimeout(0.1)
        with contextlib.suppress(OSError):
            client.sock.sendall(bundle)
    fresh = Client(serving)
    assert fresh.ask()[0] == 200
    refused = 0
    for client in flooding:
        client.sock.settimeout(20)
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_WR)
        while status := client.answer()[0]:
            refused += status == 503
    assert 0 < refused < len(flooding)
    assert fresh.ask()[0] == 200


def test_who_has_gone_writes_into_nobody_s_memory(tmp_path):
    """A client's requests that still wait for a worker never meet the slots of the next client."""
    gateway = Gateway("--lend-after", "0")
    try:
        only = package(tmp_path, slow())
        gateway.control.serve(only)
        rounds = fast.Tensor("rounds", "INT64", (1,), fast.INLINE, 0, 8)
        area = fast.Tensor("y", "", (), 0, 0, 8)
        with memory(64) as old, memory(64) as new:
            gone = Raw(gateway)
            assert gone.slot(0, old, 64, fast.WRITE) is None
            for _ in range(4):
                gone.send(fast.INFER, head(rounds), struct.pack("<q", 5000))
            gone.send(fast.INFER, head(rounds, areas=[area]), struct.pack("<q", 1))
            in_flight(gateway, only, 5)
            gone.close()
            wait_for(lambda: clients(gateway) == 0, "the gateway to notice")
            after = Raw(gateway)
            assert after.slot(0, new, 64, fast.WRITE) is None
            mine = area._replace(offset=32)
            after.send(fast.INFER, head(rounds, areas=[mine]), struct.pack("<q", 1))
            assert after.receive()[0] == fast.ANSWER
            written = os.pread(new, 64, 0)
            assert (written[:32], written[32:36] == bytes(4)) == (bytes(32), False)
            after.close()
    finally:
        gateway.close()


def clients(gateway: Gateway) -> int:
    """Return how many sockets of applications the gateway has, this question's not counted."""
    connection = gateway.connect()
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = [line for line in lines if line.startswith("edgefleet_gateway_connections ")]
    return int(found[0].split()[1]) - 1


def test_a_client_that_pipelines_for_ever_has_its_turns_only(tmp_path):
    """Its connections answer a little each; the worker is not taken for hung, others are served."""
    gateway = Gateway("--lend-after", "1", "--timeout-s", str(TIMEOUT_S))
    stop = threading.Event()
    try:
        only = package(tmp_path, slow())
        pid = gateway.control.serve(only).pid
        clients = [lent(gateway, pid, body=SHORT) for _ in range(loans.SLOTS)]
        long = request_bytes({"inputs": [SHORT["inputs"][0] | {"data": [300]}]}) * 400

        def flood(client: Client) -> None:
            while not stop.is_set():
                try:
                    client.sock.sendall(long)
                except OSError:
                    return

        def read(client: Client) -> None:
            try:
                while client.sock.recv(1 << 16):
                    pass
            except OSError:
                return

        threads = [
            threading.Thread(target=work, args=(one,)) for one in clients for work in (flood, read)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < end:
            gateway.infer(SHORT)
        assert gateway.control.stats()[only.spec.digest].crashes == 0
    finally:
        stop.set()
        for client in Client.every:
            client.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        gateway.close()
