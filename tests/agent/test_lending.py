"""Connections that a worker answers itself: lent, taken back, and never at a client's cost."""

from __future__ import annotations

import threading

import pytest

from tests.agent.gateways import Gateway, wait_for
from tests.agent.lent_client import GOOD, Client, held, lent, request_bytes
from tests.agent.test_gateway_abuse import BOMBS, HEADS
from tests.models import linear, package


@pytest.fixture(autouse=True)
def _no_client_left():
    """Close what a test leaves open."""
    yield
    Client.close_all()


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


def test_a_crowd_is_relayed_and_who_is_left_is_lent(serving):
    """Of many that ask at once none is lent and who was is taken back; one alone is lent again."""
    gateway, pid = serving
    clients = [Client(gateway) for _ in range(80)]
    first = clients[0]
    wait_for(lambda: first.ask(GOOD)[0] == 200 and held(pid) == 1, "a connection to be lent")
    for _ in range(3):
        for client in clients:
            client.send(request_bytes(GOOD))
        assert {client.answer()[0] for client in clients} == {200}
    wait_for(lambda: held(pid) == 0, "the worker to have given it back")
    last = clients.pop()
    wait_for(lambda: last.ask(GOOD)[0] == 200 and held(pid) == 1, "one alone to be lent")
    for client in [*clients, last]:
        client.close()
    wait_for(lambda: held(pid) == 0, "the worker to let go of all")
