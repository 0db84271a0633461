"""The gateway's side of a canary share: who gets which version, and what ends it."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from edgefleet_agent.client import Client
from edgefleet_agent.ipc import control
from tests import models
from tests.agent.gateways import Gateway, fp32, wait_for

OLD, NEW = 4.0, 8.0
"""What the two versions make of four ones."""


@pytest.fixture
def pair(tmp_path):
    """A gateway that serves one version and has another loaded beside it."""
    gateway = Gateway()
    one = models.package(tmp_path, models.linear(1.0), version="1.0.0")
    two = models.package(tmp_path, models.linear(2.0), version="2.0.0")
    gateway.control.serve(one)
    assert gateway.control.load(two).ok
    gateway.one, gateway.two = one.spec, two.spec
    yield gateway
    gateway.close()


def share(gateway, pct: int, lease_s: int = 60):
    """Give the new version a share."""
    spec = gateway.two
    return gateway.control.ask(control.Canary, spec.model, spec.digest, pct, lease_s)


def ask(connection, client: str = "", path: str = "/v2/models/m/infer") -> float:
    """Ask on an open connection, perhaps by a client's name; return what was answered."""
    headers = {"Inference-Client": client} if client else {}
    connection.request("POST", path, json.dumps(fp32("x", [1] * 4, [1, 4])), headers)
    response = connection.getresponse()
    body = json.loads(response.read())
    assert response.status == 200, body
    return body["outputs"][0]["data"][0]


def test_a_client_stays_on_one_version(pair):
    """By name over one connection: 40 of 200 or so get the new one, the same ones each time."""
    assert share(pair, 20).ok
    connection = pair.connect()
    first = [ask(connection, f"camera-{number}") for number in range(200)]
    again = [ask(connection, f"camera-{number}") for number in range(200)]
    connection.close()
    assert first == again
    assert set(first) == {OLD, NEW}
    assert 15 <= first.count(NEW) <= 70


@pytest.mark.parametrize(("pct", "answer"), [(100, NEW), (0, OLD)])
def test_all_or_nobody(pair, pct, answer):
    """100 % takes every client, 0 % none; no connection is lent past the share meanwhile."""
    assert share(pair, pct).ok
    connections = [pair.connect() for _ in range(4)]
    found = {ask(connection) for connection in connections for _ in range(20)}
    for connection in connections:
        connection.close()
    assert found == {answer}


def test_a_connection_without_a_name_is_a_client(pair):
    """Who says nothing stays on one version as long as the connection stands."""
    assert share(pair, 50).ok
    seen = set()
    for _ in range(40):
        connection = pair.connect()
        answers = {ask(connection) for _ in range(3)}
        connection.close()
        assert len(answers) == 1
        seen |= answers
        if seen == {OLD, NEW}:
            break
    assert seen == {OLD, NEW}


def test_a_lent_connection_comes_back_for_the_share(pair):
    """Lent before, it is divided as any other during the share; after it, it may be lent again."""
    connection = pair.connect()
    assert {ask(connection) for _ in range(50)} == {OLD}
    assert share(pair, 100).ok
    assert {ask(connection) for _ in range(50)} == {NEW}
    assert share(pair, 0).ok
    assert {ask(connection) for _ in range(50)} == {OLD}
    connection.close()


def test_a_pinned_request_is_not_touched(pair):
    """Who names the old version gets it, though every other client gets the new one."""
    assert share(pair, 100).ok
    connection = pair.connect()
    assert ask(connection, path="/v2/models/m/versions/1.0.0/infer") == OLD
    assert ask(connection) == NEW
    connection.close()


def test_the_fast_path_is_divided_too(pair):
    """A fast connection is a client: the new version during a share of all, the old one after."""
    with Client(pair.uds) as client:
        x = np.ones((1, 4), np.float32)
        assert client.infer("m", {"x": x})["y"][0][0] == OLD
        assert share(pair, 100).ok
        assert {float(client.infer("m", {"x": x})["y"][0][0]) for _ in range(20)} == {NEW}
        assert share(pair, 0).ok
        assert client.infer("m", {"x": x})["y"][0][0] == OLD


def test_without_a_word_from_agentd_it_ends(pair):
    """The lease is over: what is active answers everything again."""
    assert share(pair, 100, lease_s=3).ok
    connection = pair.connect()
    assert ask(connection) == NEW
    wait_for(lambda: ask(connection) == OLD, "the end of the lease")
    connection.close()


def test_a_worker_that_dies_costs_no_request(pair):
    """SIGKILL for the version on trial while it is asked: the old one answers what it had."""
    assert share(pair, 100).ok
    state = pair.control.ask(control.Hello)
    (pid,) = [w.pid for w in state.workers if w.digest == pair.two.digest]
    connection = pair.connect()
    assert ask(connection) == NEW
    os.kill(pid, signal.SIGSTOP)  # what is asked now is on its way when it dies
    connection.request("POST", "/v2/models/m/infer", json.dumps(fp32("x", [1] * 4, [1, 4])))
    wait_for(lambda: pair.control.stats()[pair.two.digest].in_flight, "the request at its worker")
    os.kill(pid, signal.SIGKILL)
    response = connection.getresponse()
    body = json.loads(response.read())
    assert (response.status, body["outputs"][0]["data"][0]) == (200, OLD)
    assert ask(connection) == OLD
    connection.close()
    assert share(pair, 100).code == "not_loaded"
    assert pair.control.stats()[pair.two.digest].crashes == 1


def test_a_flip_ends_it(pair):
    """The new version takes over: everybody gets it, and nothing of the share is left."""
    assert share(pair, 1).ok
    flipped = pair.control.ask(control.Flip, "m", pair.two.digest)
    assert flipped.previous == pair.one.digest
    connection = pair.connect()
    assert {ask(connection, str(number)) for number in range(30)} == {NEW}
    connection.close()
