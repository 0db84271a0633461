"""`edgefleet_agent.client` against a real gateway: one suite for the two clients."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent import client as library
from edgefleet_agent.client import documents
from edgefleet_agent.ipc import fast
from tests.agent.gateways import Gateway
from tests.models import echo_text, halves, linear, logarithm, mlp, package, slow

BIG = 60_000
LOTS = 3 * fast.INLINE_MAX // 4  # float32 elements: three times what goes inline


class Waiting:
    """`AsyncClient`, called by code that waits."""

    def __init__(self, *arguments, **named) -> None:
        self._loop = asyncio.new_event_loop()
        self.client = library.AsyncClient(*arguments, **named)
        self.buffer = self.client.buffer

    def __getattr__(self, name):
        work = getattr(self.client, name)
        return lambda *args, **named: self._loop.run_until_complete(work(*args, **named))

    def close(self) -> None:
        self.client.close()
        self._loop.close()


KINDS = {"sync": library.Client, "async": Waiting}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with a model of every sort."""
    one = Gateway("--max-body-bytes", "8000000")
    folder = tmp_path_factory.mktemp("packages")
    models = {
        "m": linear(2.0), "wide": linear(2.0, BIG), "log": logarithm(), "text": echo_text(),
        "half": halves(), "digits": mlp(), "slow": slow(),
    }  # fmt: skip
    for name, model in models.items():
        one.control.serve(package(folder, model, name=name))
    yield one
    one.close()


@pytest.fixture(params=KINDS)
def kind(request):
    """Which of the two clients."""
    return KINDS[request.param]


@pytest.fixture
def client(gateway, kind):
    """A client of the gateway."""
    one = kind(gateway.uds)
    yield one
    one.close()


def test_small_tensors_go_along_with_the_frame(client):
    """Values, datatypes and shapes come back, with the model and version that gave them."""
    result = client.infer("digits", {"x": np.ones((3, 64), np.float32)})
    assert {name: (a.dtype, a.shape) for name, a in result.items()} == {
        "label": (np.int64, (3,)), "scores": (np.float32, (3, 10)),
    }  # fmt: skip
    assert (result.model, result.version) == ("digits", "1.0.0")
    assert (result["label"] == result["scores"].argmax(axis=1)).all()


def test_large_tensors_go_by_shared_memory(client):
    """Input and, once its size is known, output lie in memory that both sides map."""
    for value in (1.0, 2.0, 3.0):
        found = client.infer("log", {"x": np.full(LOTS, value, np.float32)})["y"]
        assert found.shape == (LOTS,)
        assert np.allclose(found, np.log(value))
    maps = Path("/proc/self/maps").read_text()
    assert maps.count("memfd:edgefleet") >= 2


def test_a_buffer_is_sent_without_a_copy(client):
    """What is written into a buffer after a request counts for the next; a part of it will do."""
    rows = client.buffer((3, BIG), np.float32)
    for value in (1.0, 2.0):
        rows[:] = value
        assert np.allclose(client.infer("wide", {"x": rows})["y"], 2 * value * BIG)
    rows[1] = 5.0
    assert np.allclose(client.infer("wide", {"x": rows[1:2]})["y"], 10 * BIG)


def test_what_was_returned_is_the_callers(client):
    """Results that are kept stay as they were while later requests bring others."""
    kept = [
        client.infer("log", {"x": np.full(LOTS, float(value), np.float32)})["y"]
        for value in range(1, 41)
    ]
    for value, array in enumerate(kept, 1):
        assert np.allclose(array, np.log(value))
    kept[0][:] = 7  # and may be written
    client.close()
    assert np.allclose(kept[1], np.log(2))


def test_texts_are_bytes_that_come_back(client):
    """BYTES go as str or bytes, also empty ones and many of them, and come as bytes."""
    texts = ["", "grün", "a" * 1000, b"raw"]
    found = client.infer("text", {"t": np.array(texts, object)})["u"]
    assert found.tolist() == [b"", "grün".encode(), b"a" * 1000, b"raw"]
    many = np.array([str(number) * 30 for number in range(3000)])
    for _ in range(2):  # inline, then in shared memory
        assert client.infer("text", {"t": many})["u"].tolist() == [t.encode() for t in many]


@pytest.mark.parametrize("given", [
    np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 4)),
    np.arange(16, dtype=np.float32).reshape(4, 4)[::2],
    np.arange(8, dtype=">f4").reshape(2, 4),
    np.zeros((0, 4), np.float32),
])  # fmt: skip
def test_any_layout_of_an_array_is_understood(client, given):
    """Order, strides, byte order and emptiness are the client's business."""
    found = client.infer("m", {"x": given})["y"]
    assert np.allclose(found, 2 * given.sum(axis=1, keepdims=True).repeat(2, 1))


def test_half_precision_goes_as_it_is(client):
    """FP16, which JSON cannot carry, comes back bit by bit."""
    given = np.array([0.1, -65504, np.inf], np.float16)
    assert client.infer("half", {"x": given})["y"].tobytes() == given.tobytes()


def test_one_can_ask_for_some_outputs(client):
    """`outputs` chooses and orders; a name that the model has not is the application's mistake."""
    x = np.ones((1, 64), np.float32)
    assert list(client.infer("digits", {"x": x}, outputs=["scores"])) == ["scores"]
    with pytest.raises(library.InvalidRequestError, match="nope"):
        client.infer("digits", {"x": x}, outputs=["nope"])


@pytest.mark.parametrize(("model", "inputs", "named", "error", "code"), [
    ("none", {"x": np.ones((1, 4), np.float32)}, {}, "UnknownModelError", "unknown_model"),
    ("m", {"x": np.ones((1, 4), np.float32)}, {"version": "9"},
     "UnknownModelError", "unknown_version"),
    ("m", {"x": np.ones((1, 4))}, {}, "InvalidRequestError", "invalid_request"),
    ("m", {"x": np.ones((1, 5), np.float32)}, {}, "InvalidRequestError", "invalid_request"),
    ("m", {}, {}, "InvalidRequestError", "invalid_request"),
    ("m", {"x": np.ones((1, 4), np.complex64)}, {}, "InvalidRequestError", "invalid_request"),
    ("m", {"x": np.array([{}])}, {}, "InvalidRequestError", "invalid_request"),
    ("slow", {"rounds": np.array([10**6])}, {"timeout_s": 0.2}, "DeadlineError", "deadline"),
])  # fmt: skip
def test_errors_say_who_has_to_act(client, model, inputs, named, error, code):
    """Each failure is a class of its own with the gateway's code, and the next request is fine."""
    with pytest.raises(getattr(library, error)) as caught:
        client.infer(model, inputs, **named)
    assert caught.value.code == code
    good = client.infer("m", {"x": np.ones((1, 4), np.float32)})
    assert good["y"].tolist() == [[8.0, 8.0]]


def test_a_frame_that_is_too_long_is_refused_and_the_client_goes_on(gateway, kind):
    """What neither fits into slots nor into a frame is the application's mistake."""
    client = kind(gateway.uds)
    with pytest.raises(library.InvalidRequestError) as caught:
        client.infer("text", {"t": np.array(["a" * 40_000_000])})
    assert caught.value.code == "body_too_large"
    assert client.infer("m", {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[8.0, 8.0]]
    client.close()


def test_documents_are_those_of_rest(client, gateway):
    """Index, metadata and readiness are what HTTP says."""
    assert client.models() == gateway.request("POST", "/v2/repository/index")[1]
    assert client.metadata("digits") == gateway.request("GET", "/v2/models/digits")[1]
    assert client.metadata("digits", "1.0.0")["name"] == "digits"
    assert client.ready()
    assert client.ready("digits")
    assert not client.ready("none")
    with pytest.raises(library.UnknownModelError):
        client.metadata("none")


def test_without_a_gateway_the_error_says_where_it_was_looked_for(tmp_path, kind):
    """The path is named, with the variable that would change it; nothing is ready."""
    client = kind(tmp_path / "infer.sock")
    with pytest.raises(library.GatewayGoneError, match=documents.VARIABLE):
        client.infer("m", {})
    with pytest.raises(library.GatewayGoneError):
        client.models()
    assert not client.ready()
    client.close()


@pytest.mark.parametrize("made", [library.Client, library.AsyncClient])
def test_a_way_to_repeat_that_is_unknown_is_refused(tmp_path, made):
    """A misspelt `retry` is told when the client is made, not when the gateway restarts."""
    with pytest.raises(ValueError, match="'unsent' or 'always'"):
        made(tmp_path / "infer.sock", retry="sometimes")


def test_the_socket_is_found_by_itself(monkeypatch):
    """An argument wins over the environment, which wins over the agent's default."""
    monkeypatch.delenv(documents.VARIABLE, raising=False)
    assert documents.socket_path(None) == "/run/edgefleet/infer.sock"
    monkeypatch.setenv(documents.VARIABLE, "/x")
    assert documents.socket_path(None) == "/x"
    assert documents.socket_path("/y") == "/y"


def restart(gateway, packages) -> None:
    """End a gateway and start it anew with the same models."""
    gateway.control.close()
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(10)
    gateway.process = gateway.start()
    gateway.control = type(gateway.control)(gateway.run / "control.sock")
    for one in packages:
        gateway.control.serve(one)


def test_a_client_survives_a_restart_of_the_gateway(gateway, kind, tmp_path):
    """The next request connects anew, with all its buffers."""
    own = Gateway()
    one = package(tmp_path, linear(1.0, BIG))
    own.control.serve(one)
    client = kind(own.uds)
    rows = client.buffer((1, BIG), np.float32)
    rows[:] = 1
    assert np.allclose(client.infer("m", {"x": rows})["y"], BIG)
    restart(own, [one])
    assert np.allclose(client.infer("m", {"x": rows})["y"], BIG)
    client.close()
    own.close()


def test_a_client_may_go_on_trying_until_its_deadline(kind, tmp_path):
    """With `always` a request outlasts the time in which there is no gateway."""
    own = Gateway()
    one = package(tmp_path, linear(1.0))
    own.control.serve(one)
    link = tmp_path / "link.sock"
    link.symlink_to(own.uds)
    client = kind(link, retry="always")
    x = np.ones((1, 4), np.float32)
    client.infer("m", {"x": x})
    restart(own, [one])
    link.unlink()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(client.infer("m", {"x": x}, timeout_s=20)["y"].tolist())
    )
    thread.start()
    assert found == []
    link.symlink_to(own.uds)
    thread.join(20)
    assert found == [[[4.0, 4.0]]]
    client.close()
    own.close()


def test_one_connection_carries_many_requests_at_once(gateway):
    """More requests than a client may have open are all answered, each with its own answer."""

    async def ask() -> None:
        async with library.AsyncClient(gateway.uds) as client:
            asked = [
                client.infer("wide", {"x": np.full((1, BIG), float(value), np.float32)})
                for value in range(100)
            ]
            for value, result in enumerate(await asyncio.gather(*asked)):
                assert np.allclose(result["y"], 2 * value * BIG)

    asyncio.run(ask())


def test_a_request_that_was_given_up_disturbs_no_other(gateway):
    """Cancelling one leaves the connection and the others as they are."""

    async def ask() -> None:
        async with library.AsyncClient(gateway.uds) as client:
            slow_one = asyncio.create_task(client.infer("slow", {"rounds": np.array([3000])}))
            others = [
                asyncio.create_task(client.infer("m", {"x": np.full((1, 4), 1.0, np.float32)}))
                for _ in range(10)
            ]
            await asyncio.sleep(0)
            slow_one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow_one
            for one in others:
                assert (await one)["y"].tolist() == [[8.0, 8.0]]

    asyncio.run(ask())


def test_threads_may_share_a_client(gateway):
    """One at a time, each gets its own answer."""
    client, wrong = library.Client(gateway.uds), []

    def ask(value: float) -> None:
        for _ in range(50):
            found = client.infer("m", {"x": np.full((1, 4), value, np.float32)})["y"]
            if found.tolist() != [[8 * value] * 2]:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(float(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert wrong == []


def test_importing_it_brings_numpy_and_nothing_of_the_agent():
    """An application gets no runtime, no MQTT, no TUF, no HTTP parser by importing the client."""
    code = (
        "import json, sys\n"
        "import numpy; before = set(sys.modules)\n"
        "import edgefleet_agent.client\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"onnxruntime", "paho", "tuf", "httptools", "urllib3", "msgspec", "cryptography"}
    assert not loaded & heavy
    ours = {name for name in json.loads(done.stdout) if name.startswith("edgefleet")}
    assert {name.split(".")[1] for name in ours if name.startswith("edgefleet_agent.")} == {
        "client", "ipc",
    }  # fmt: skip
