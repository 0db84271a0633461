"""Requests that wait for one model are run as one, each with its own answer, by real processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading

import numpy as np
import pytest

from edgefleet_agent import client as library
from edgefleet_agent.ipc import control, frames
from edgefleet_shared import processing as p
from edgefleet_shared.package import Batching
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.agent.lent_client import Client, held, request_bytes
from tests.agent.test_hostile_worker import copied_link
from tests.agent.test_image_door import jpeg
from tests.batch_models import doubled, lookup, slow_rows
from tests.models import colours, linear, package

LENGTH = "Inference-Header-Content-Length"
WIDE = 1 << 16
UNTIL_FULL = 60_000_000
"""So long nobody waits in a test: a batch that leaves has become full."""


VERSIONS = itertools.count(1)


@pytest.fixture(scope="module")
def running():
    """The gateway of this module's tests."""
    one = Gateway()
    yield one
    one.close()


@pytest.fixture
def gateway(running):
    """A gateway that has no model when a test begins, and is left without one."""
    yield running
    Client.close_all()
    for model in {one.model for one in running.control.ask(control.Hello).workers}:
        assert running.control.ask(control.Unroute, model).ok
    wait_for(lambda: not running.control.ask(control.Hello).workers, "the workers' end")


def serve(gateway, folder, model, rows=4, delay_us=UNTIL_FULL, **more):
    """Serve a model that is run in batches, as a version of its own; return its package."""
    version = f"{next(VERSIONS)}.0.0"
    batching = Batching(rows, delay_us)
    made = package(folder, model, batching=batching, version=version, **more)
    made.pid = gateway.control.serve(made).pid
    return made


def ask_all(gateway, bodies, path="/v2/models/m/infer"):
    """Send each request on a connection of its own before the first answer; return the answers."""
    clients = [Client(gateway) for _ in bodies]
    for client, body in zip(clients, bodies, strict=True):
        client.send(request_bytes(body, path))
    return [client.answer() for client in clients]


def rounds(*counts):
    """A request to `slow_rows`."""
    one = {"name": "rounds", "datatype": "INT64", "shape": [len(counts)], "data": list(counts)}
    return {"inputs": [one]}


def row(value, **more):
    """A request to `linear` whose answer is four times the value and the scale."""
    return {**fp32("x", [value] * 4, [1, 4]), **more}


def data(answer):
    """The data of the only output."""
    (output,) = answer["outputs"]
    return output["data"]


def counted(gateway, made):
    """Requests, runs, their rows, and runs by rows."""
    stats = gateway.control.stats()[made.spec.digest]
    batches = {rows: runs for rows, (runs, _) in stats.batches.items()}
    return stats.requests, stats.executions, stats.inferences, batches


def test_requests_that_wait_are_run_as_one(gateway, tmp_path):
    """Each gets its own rows under its own id; counts say one run, as Triton's would."""
    made = serve(gateway, tmp_path, linear(2.0))
    bodies = [row(1, id="a"), {**fp32("x", [2] * 4 + [3] * 4, [2, 4]), "id": "b"}, row(4, id="c")]
    answers = ask_all(gateway, bodies)
    assert [status for status, _ in answers] == [200] * 3
    assert [answer["id"] for _, answer in answers] == ["a", "b", "c"]
    assert [data(answer) for _, answer in answers] == [[8, 8], [16, 16, 24, 24], [32, 32]]
    assert counted(gateway, made) == (3, 1, 4, {4: 1})
    (told,) = gateway.request("GET", "/v2/models/m/stats")[1]["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (4, 1)
    (batch,) = told["batch_stats"]
    assert (batch["batch_size"], batch["compute_infer"]["count"]) == (4, 1)
    whole = batch["compute_infer"]["ns"]
    assert whole - 3 <= told["inference_stats"]["compute_infer"]["ns"] <= whole
    connection = gateway.connect()
    connection.request("GET", "/metrics?compat=triton")
    text = connection.getresponse().read().decode()
    connection.close()
    named = f'{{model="m",version="{made.spec.version}"}}'
    for name, value in (
        ("nv_inference_request_success", 3), ("nv_inference_count", 4),
        ("nv_inference_exec_count", 1), ("edgefleet_inference_runs_total", 1),
    ):  # fmt: skip
        assert f"\n{name}{named} {value}\n" in text


def test_every_door_ends_in_the_same_batch(gateway, tmp_path):
    """JSON, binary, a bare tensor and the fast path: four requests, one run."""
    made = serve(gateway, tmp_path, linear(2.0))
    tensor = np.full(4, 2, np.float32).tobytes()
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    entry["parameters"] = {"binary_data_size": len(tensor)}
    head = json.dumps({"inputs": [entry]}).encode()
    bare = np.full(4, 3, np.float32).tobytes()
    bodies = [
        (json.dumps(row(1)), {}), (head + tensor, {LENGTH: str(len(head))}), (bare, {LENGTH: "0"}),
    ]  # fmt: skip
    connections = [gateway.connect() for _ in bodies]
    for connection, (body, headers) in zip(connections, bodies, strict=True):
        connection.request("POST", "/v2/models/m/infer", body, headers)
    with library.Client(gateway.uds) as fast:
        found = fast.infer("m", {"x": np.full((1, 4), 4, np.float32)})["y"]
    answers = [connection.getresponse().read() for connection in connections]
    for connection in connections:
        connection.close()
    assert found.tolist() == [[32, 32]]
    assert [data(json.loads(answer)) for answer in answers[:2]] == [[8, 8], [16, 16]]
    assert answers[2].endswith(np.full(2, 24, np.float32).tobytes())
    assert counted(gateway, made) == (4, 1, 4, {4: 1})


def test_large_requests_are_joined_where_they_lie(gateway, tmp_path):
    """Bodies that lie in memory shared with the gateway, and tensors in the application's own."""
    made = serve(gateway, tmp_path, linear(2.0, WIDE), rows=4)
    connections = [gateway.connect() for _ in range(3)]
    for number, connection in enumerate(connections, 1):
        bare = np.full(WIDE, number, np.float32).tobytes()
        connection.request("POST", "/v2/models/m/infer", bare, {LENGTH: "0"})
    with library.Client(gateway.uds) as fast:
        found = fast.infer("m", {"x": np.full((1, WIDE), 4, np.float32)})["y"]
    answers = [connection.getresponse().read()[-4:] for connection in connections]
    for connection in connections:
        connection.close()
    assert found.tolist() == [[8 * WIDE] * 2]
    assert [np.frombuffer(one, "<f4")[0] for one in answers] == [2 * WIDE * n for n in (1, 2, 3)]
    assert counted(gateway, made) == (4, 1, 4, {4: 1})


def test_a_bad_request_harms_nobody(gateway, tmp_path):
    """What does not fit the model is refused at once, and the others wait on and are answered."""
    made = serve(gateway, tmp_path, linear(2.0), rows=2)
    first = Client(gateway)
    first.send(request_bytes(row(1)))
    bad = ask_all(gateway, [fp32("x", [1, 2, 3], [1, 3]), b"nonsense", fp32("z", [1] * 4, [1, 4])])
    assert [(status, answer["code"]) for status, answer in bad] == [(400, "invalid_request")] * 3
    assert data(Client(gateway).ask(row(2))[1]) == [16, 16]
    assert data(first.answer()[1]) == [8, 8]
    assert counted(gateway, made) == (2, 1, 2, {2: 1})


def test_if_a_batch_fails_only_the_guilty_fails(gateway, tmp_path):
    """An index that is not there fails the run of all; asked alone, the others are answered."""
    made = serve(gateway, tmp_path, lookup(), rows=3)
    one = {"name": "index", "datatype": "INT64", "shape": [1]}
    answers = ask_all(gateway, [{"inputs": [{**one, "data": [n]}]} for n in (1, 99, 3)])
    assert [status for status, _ in answers] == [200, 400, 200]
    assert "idx=99" in answers[1][1]["error"]
    assert [data(answers[n][1]) for n in (0, 2)] == [[2, 3], [6, 7]]
    assert counted(gateway, made) == (2, 2, 2, {1: 2})


def test_what_cannot_be_joined_does_not_wait_for_company(gateway, tmp_path):
    """A request with more rows than a batch, with none, or of another shape than the one before."""
    made = serve(gateway, tmp_path, linear(2.0), rows=2)
    assert len(data(Client(gateway).ask(fp32("x", [1] * 12, [3, 4]))[1])) == 6
    assert data(Client(gateway).ask(fp32("x", [], [0, 4]))[1]) == []
    assert counted(gateway, made) == (2, 2, 4, {1: 1})
    deep = serve(gateway, tmp_path, doubled(), name="deep", rows=2)
    shapes = [fp32("x", [1] * 8, [1, 2, 4]), fp32("x", [1] * 12, [1, 3, 4])]
    waiting = Client(gateway)
    waiting.send(request_bytes(shapes[0], "/v2/models/deep/infer"))
    others = ask_all(gateway, [shapes[1], shapes[1]], "/v2/models/deep/infer")
    assert waiting.answer()[0] == 200
    assert [status for status, _ in others] == [200, 200]
    assert counted(gateway, deep)[0] == 3


def test_a_batch_that_a_worker_died_on_is_asked_again_one_by_one(gateway, tmp_path):
    """The guilty alone is given up, on its second worker; its neighbours are answered."""
    made = serve(gateway, tmp_path, slow_rows(), rows=3)
    bodies = [rounds(1), rounds(10**9), rounds(2)]
    clients = [Client(gateway) for _ in bodies]
    for count, (client, body) in enumerate(zip(clients, bodies, strict=True), 1):
        client.send(request_bytes(body))
        in_flight(gateway, made, count)
    os.kill(made.pid, signal.SIGKILL)
    assert data(clients[0].answer()[1]) == [1]
    in_flight(gateway, made, 2)
    workers = gateway.control.ask(control.Hello).workers
    os.kill(workers[0].pid, signal.SIGKILL)
    assert data(clients[2].answer()[1]) == [2]
    status, answer = clients[1].answer()
    assert (status, answer["code"]) == (500, "worker_crashed")
    stats = gateway.control.stats()[made.spec.digest]
    assert (stats.crashes, stats.requests, stats.server_errors) == (2, 2, 1)
    assert data(Client(gateway).ask(rounds(3, 4, 5))[1]) == [3, 4, 5]


def in_flight(gateway, made, count):
    """Wait until the gateway has asked the package's worker so many requests."""
    digest = made.spec.digest
    wait_for(lambda: gateway.control.stats()[digest].in_flight == count, f"{count} in flight")


def test_a_request_asked_alone_is_run_alone(gateway, tmp_path):
    """What comes again after a death is joined to nothing, not even to others of its kind."""
    made = serve(gateway, tmp_path, slow_rows(), rows=4)
    clients = [Client(gateway) for _ in range(3)]
    for client in clients:
        client.send(request_bytes(rounds(1)))
    in_flight(gateway, made, 3)
    os.kill(made.pid, signal.SIGKILL)
    assert [data(client.answer()[1]) for client in clients] == [[1]] * 3
    assert counted(gateway, made) == (3, 3, 3, {1: 3})


def test_a_batch_belongs_to_one_version(gateway, tmp_path):
    """Who waits when the route moves is answered by the version that was asked."""
    old = serve(gateway, tmp_path, linear(1.0), rows=8, delay_us=300_000)
    early = [Client(gateway) for _ in range(2)]
    for client in early:
        client.send(request_bytes(row(1)))
    in_flight(gateway, old, 2)
    new = serve(gateway, tmp_path, linear(2.0), rows=2)
    assert gateway.control.ask(control.Release, old.spec.digest).ok
    said = ask_all(gateway, [row(1), row(1)]) + [client.answer() for client in early]
    versions = [new.spec.version] * 2 + [old.spec.version] * 2
    assert [one["model_version"] for _, one in said] == versions
    assert [data(one) for _, one in said] == [[8, 8], [8, 8], [4, 4], [4, 4]]
    assert counted(gateway, new) == (2, 1, 2, {2: 1})


def test_a_deadline_is_not_spent_on_company(gateway, tmp_path):
    """Half of it at most: a request that nobody joins is answered in time."""
    serve(gateway, tmp_path, linear(2.0), rows=4)
    assert Client(gateway).ask(row(1), extra="Inference-Timeout-Ms: 4000\r\n")[0] == 200


def test_a_model_that_batches_is_lent_no_connection(tmp_path):
    """What is joined comes over many connections, so the gateway keeps them."""
    gateway = Gateway("--lend-after", "1")
    try:
        made = serve(gateway, tmp_path, linear(2.0), delay_us=0)
        client = Client(gateway)
        assert [client.ask(row(1))[0] for _ in range(8)] == [200] * 8
        assert held(made.pid) == 0
        assert counted(gateway, made) == (8, 8, 8, {1: 8})
    finally:
        gateway.close()


def test_pictures_become_one_batch(gateway, tmp_path):
    """JPEGs are unpacked each by itself, run as one, and labelled each by itself."""
    steps = p.Processing(
        pre=[p.DecodeImage(), p.Resize(8, 8), p.Normalise(1 / 255), p.Layout()],
        post=[p.TopK(1, labels="labels")],
    )
    made = serve(
        gateway, tmp_path, colours(rows="n"), labels=b"red\ngreen\nblue\n", processing=steps
    )
    photos = [jpeg(250, 5, 5), b"no picture", jpeg(5, 5, 250), jpeg(5, 250, 5)]
    clients = [Client(gateway) for _ in photos]
    for client, photo in zip(clients, photos, strict=True):
        client.send(request_bytes(photo, extra=f"{LENGTH}: 0\r\n"))
    answers = [client.answer() for client in clients]
    assert [status for status, _ in answers] == [200, 400, 200, 200]
    labels = [
        one["data"][0]
        for _, answer in answers
        for one in answer.get("outputs", [])
        if one["name"] == "labels"
    ]
    assert labels == ["red", "blue", "green"]
    assert counted(gateway, made) == (3, 1, 3, {3: 1})


@pytest.mark.parametrize("signed", [True, False])
def test_tflite_models_are_resized(gateway, tmp_path, signed):
    """A LiteRT session takes a batch, then one row, then a batch again, with a signature or not."""
    light = pytest.importorskip("tests.tflite_models")
    made = serve(gateway, tmp_path, light.linear(2.0, signed=signed), rows=3)
    for _ in range(2):
        answers = ask_all(gateway, [row(1), row(2), row(3)])
        assert [data(answer) for _, answer in answers] == [[8, 8], [16, 16], [24, 24]]
        assert len(data(Client(gateway).ask(fp32("x", [1] * 16, [4, 4]))[1])) == 8
    assert counted(gateway, made) == (8, 4, 14, {3: 2})


def test_a_worker_that_counts_runs_which_cannot_be_is_killed(gateway, tmp_path):
    """One that batches nothing, and one that says it ran more requests than it was asked."""
    plain = package(tmp_path, linear(1.0), name="plain")
    pids = [gateway.control.serve(plain).pid, serve(gateway, tmp_path, linear(2.0)).pid]
    for pid in pids:
        link = socket.socket(fileno=copied_link(pid))
        link.sendall(frames.head(frames.RAN, 1, 1, frames.NO_JSON, 5, 0))
        link.close()
        assert "SIGKILL" in gateway.control.wait_event("worker_died").message


def test_many_clients_lose_nothing(gateway, tmp_path):
    """Six clients at once, requests of one to three rows, no delay: each gets its own rows."""
    made = serve(gateway, tmp_path, linear(1.0), rows=8, delay_us=0)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        with library.Client(gateway.uds) as client:
            for _ in range(100):
                x = numbers.integers(0, 9, (int(numbers.integers(1, 4)), 4)).astype(np.float32)
                y = client.infer("m", {"x": x})["y"]
                if (y != x.sum(1, keepdims=True)).any() or y.shape != (len(x), 2):
                    wrong.append((x, y))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    requests, runs, rows, batches = counted(gateway, made)
    assert requests == 600
    assert 1 <= runs <= 600 <= rows
    assert sum(batches.values()) == runs
    assert sum(size * times for size, times in batches.items()) == rows
