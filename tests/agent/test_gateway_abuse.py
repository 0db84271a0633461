"""Clients that mean harm: the gateway refuses them, and the others notice nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.agent.gateways import Gateway, fp32
from tests.models import linear, package

LIMIT = 1_000_000
GOOD = fp32("x", [1, 2, 3, 4], [1, 4])
PATH = b"/v2/models/m/infer"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with a small body limit and little patience."""
    one = Gateway("--max-body-bytes", str(LIMIT), "--timeout-s", "2")
    folder: Path = tmp_path_factory.mktemp("packages")
    one.control.serve(package(folder, linear(2.0)))
    yield one
    one.close()


def connected(gateway: Gateway) -> socket.socket:
    """Return a fresh connection."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(gateway.uds))  # waits for its turn, which it would not with a deadline
    sock.settimeout(10)
    return sock


def answer(sock: socket.socket) -> bytes:
    """Read until the gateway closes."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            got += part
    return got


def memory_kb(pid: int) -> int:
    """Return a process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


HEADS = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "a list of lengths": b"Content-Length: 5, 5\r\n",
    "an endless length": b"Content-Length: 99999999999999999999999\r\n",
    "a folded header": b"X: a\r\n b\r\nContent-Length: 5\r\n",
    "a space before the colon": b"Content-Length : 5\r\n",
    "a NUL": b"X: a\0b\r\nContent-Length: 5\r\n",
    "a lying JSON length": b"Content-Length: 5\r\nInference-Header-Content-Length: -1\r\n",
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_two_servers_could_read_differently_is_refused(gateway, case):
    """It gets 400 and the connection ends, so that nothing after it is taken for a request."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\nhello" % (PATH, HEADS[case])
    with connected(gateway) as sock:
        sock.sendall(head + b"GET /v2 HTTP/1.1\r\n\r\n")
        got = answer(sock)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1 ") == 1


def deep(depth: int) -> bytes:
    """Return so many nested lists."""
    return b"[" * depth + b"]" * depth


BOMBS = {
    "parameters": b'{"parameters": {"a": %s}, "inputs": []}' % deep(100_000),
    "an unknown field": b'{"zz": %s, "inputs": []}' % deep(100_000),
    "data": b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": %s}]}'
    % deep(100_000),
    "a shape that overflows": (
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [4611686018427387904, 4],'
        b' "data": [1]}]}'
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_the_clients_fault(gateway, case):
    """It gets 400, not 500: what a client sends never speaks against the model in probation."""
    status, body, _ = gateway.infer(BOMBS[case])
    assert (status, body["code"]) == (400, "invalid_request")
    assert gateway.infer(GOOD)[0] == 200
    assert all(stats.server_errors == 0 for stats in gateway.control.stats().values())


def test_bodies_that_never_end_are_bounded_together(gateway):
    """Some are refused at once with 503, all by 408 in the end; then there is room again."""
    head = b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (PATH, LIMIT)
    before = memory_kb(gateway.process.pid)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(gateway)) for _ in range(40)]
        for sock in socks:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(head + b" " * (LIMIT - 1))
        # 40 MB were sent; 2 MB may be one process's, and the allocator's slack.
        assert memory_kb(gateway.process.pid) - before < 20_000
        assert gateway.infer(GOOD)[0] == 503
        statuses = [answer(sock)[9:12] for sock in socks]
    assert statuses.count(b"408") == 2
    assert set(statuses) <= {b"408", b"503", b""}  # '' where the close came with unread bytes
    assert gateway.infer(GOOD)[0] == 200


def test_a_burst_of_clients_waits_for_a_busy_gateway(gateway):
    """500 that give a deadline, and so never wait for the backlog, while nobody accepts."""
    gateway.infer(GOOD)
    with contextlib.ExitStack() as stack:
        gateway.process.send_signal(signal.SIGSTOP)
        try:
            socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(500)]
            for sock in socks:
                sock.settimeout(10)
                sock.connect(str(gateway.uds))
        finally:
            gateway.process.send_signal(signal.SIGCONT)
        for sock in socks:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert all(answer(sock).startswith(b"HTTP/1.1 200 ") for sock in socks)


def test_clients_that_dawdle_disturb_nobody(gateway):
    """200 idle connections and 200 that send half a head: the others are answered at once."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(gateway)) for _ in range(400)]
        for sock in socks[200:]:
            sock.sendall(b"POST %s HTTP/1.1\r\nContent-Le" % PATH)
        begun = time.monotonic()
        assert gateway.infer(GOOD)[0] == 200
        assert time.monotonic() - begun < 1.0
        assert answer(socks[-1]).startswith(b"HTTP/1.1 408 ")
        # An idle connection has no deadline: it is kept alive.
        socks[0].sendall(b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert answer(socks[0]).startswith(b"HTTP/1.1 200 ")


def test_answers_that_nobody_reads_are_bounded(gateway):
    """A client that asks and asks and never reads is stopped, not buffered for."""
    body = json.dumps(fp32("x", [1.5] * 4000, [1000, 4])).encode()
    one = b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (PATH, len(body), body)
    before = memory_kb(gateway.process.pid)
    with connected(gateway) as sock:
        sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(2000):
                sock.sendall(one)
        assert memory_kb(gateway.process.pid) - before < 20_000
        assert gateway.infer(GOOD)[0] == 200
