"""The gRPC door: Triton's client unmodified, gRPC's words for errors, a process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import json_format
from PIL import Image
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from edgefleet_agent.grpc_door.messages import MESSAGES
from edgefleet_agent.grpc_door.translate import to_rest
from edgefleet_shared import processing as p
from edgefleet_shared.errors import InvalidInputError
from tests.agent.gateways import Gateway, wait_for
from tests.models import colours, echo_text, halves, linear, package, slow

METHOD = "/inference.GRPCInferenceService/"


class DoorGateway(Gateway):
    """A gateway with a gRPC door on a free port."""

    def __init__(self, *options: str) -> None:
        super().__init__("--grpc", "127.0.0.1:0", *options)

    @property
    def grpc(self) -> str:
        path = self.run / "infer-grpc.addr"
        return wait_for(lambda: path.exists() and path.read_text(), "the gRPC door's address")

    def door(self) -> int:
        """The door's pid, 0 while there is none."""
        for pid in self.children():
            if b"edgefleet_agent.grpc_door" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with the door, serving `m`, texts, half floats and a slow model."""
    one = DoorGateway("--max-body-bytes", "2000000", "--queue-limit", "3")
    folder = tmp_path_factory.mktemp("packages")
    one.control.serve(package(folder, linear(2.0)))
    one.control.serve(package(folder, echo_text(), name="text"))
    one.control.serve(package(folder, halves(), name="half"))
    one.control.serve(package(folder, slow(), name="slow"))
    steps = p.Processing(
        [p.DecodeImage(), p.Resize(8, 8), p.Normalise(1 / 255), p.Layout()],
        [p.TopK(1, labels="labels")],
    )
    made = package(folder, colours(), name="colours", labels=b"r\ng\nb\n", processing=steps)
    one.control.serve(made)
    yield one
    one.close()


@pytest.fixture(scope="module")
def client(gateway):
    """Triton's gRPC client."""
    one = triton.InferenceServerClient(gateway.grpc)
    yield one
    one.close()


def given(name, array, kind):
    """An input that holds an array."""
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_those_that_tritons_client_was_generated_from(name):
    """Every field has the number, type and label that it has there."""

    def fields(descriptor):
        inner = {one.name: fields(one) for one in descriptor.nested_types}
        return inner, {
            f.name: (f.number, f.type, f.is_repeated, f.message_type and f.message_type.full_name)
            for f in descriptor.fields
        }

    theirs_inner, theirs = fields(getattr(service_pb2, name).DESCRIPTOR)
    inner, ours = fields(MESSAGES[name].DESCRIPTOR)
    assert ours == {k: v for k, v in theirs.items() if k != "response_stats"}
    assert inner == {k: v for k, v in theirs_inner.items() if k != "ResponseStatsEntry"}


def test_what_is_asked_about_server_and_models_is_answered(client):
    """Health, metadata, index and statistics."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1.0.0")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata().name == "edgefleet"
    found = client.get_model_metadata("m")
    assert (found.inputs[0].name, list(found.inputs[0].shape)) == ("x", [-1, 4])
    index = {one.name: one.state for one in client.get_model_repository_index().models}
    assert index["m"] == "READY"
    client.infer("m", [given("x", np.ones((1, 4), np.float32), "FP32")])
    (stats,) = client.get_inference_statistics("m").model_stats
    assert stats.inference_stats.success.count >= 1
    assert stats.inference_stats.success.ns > 0
    assert len(client.get_inference_statistics().model_stats) == 5


def test_tensors_go_both_ways(client):
    """Numbers, texts and half floats come back as they must; ids and versions too."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = client.infer("m", [given("x", x, "FP32")], "1.0.0", request_id="r1",
                         outputs=[triton.InferRequestedOutput("y")])  # fmt: skip
    np.testing.assert_allclose(found.as_numpy("y"), x.sum(axis=1, keepdims=True) * [2, 2])
    assert found.get_response().id == "r1"
    assert found.get_response().model_version == "1.0.0"
    words = np.array([b"a", "ö".encode(), b""], object)
    assert client.infer("text", [given("t", words, "BYTES")]).as_numpy("u").tolist() == [*words]
    small = np.array([0.5, -2, np.inf], np.float16)
    np.testing.assert_array_equal(
        client.infer("half", [given("x", small, "FP16")]).as_numpy("y"), small
    )


def test_a_jpeg_goes_in_and_a_label_comes_out(client):
    """Processing is the same behind this door; `raw` reaches the bare model."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 240, 10)).save(file, "JPEG")
    picture = np.array([file.getvalue()], object)
    found = client.infer("colours", [given("image", picture, "BYTES")])
    assert found.as_numpy("labels").tolist() == [[b"g"]]
    x = np.zeros((1, 3, 8, 8), np.float32)
    found = client.infer("colours", [given("x", x, "FP32")], parameters={"raw": True})
    assert found.as_numpy("y").tolist() == [[0, 0, 0]]


TYPED = {
    "INT8": ("int_contents", [-128, 127], "i1"), "INT16": ("int_contents", [-5, 5], "<i2"),
    "INT32": ("int_contents", [-5, 5], "<i4"), "INT64": ("int64_contents", [-(2**60)], "<i8"),
    "UINT8": ("uint_contents", [0, 255], "u1"), "UINT16": ("uint_contents", [65535], "<u2"),
    "UINT32": ("uint_contents", [2**32 - 1], "<u4"), "UINT64": ("uint64_contents", [2**63], "<u8"),
    "FP32": ("fp32_contents", [0.5], "<f4"), "FP64": ("fp64_contents", [0.1], "<f8"),
    "BOOL": ("bool_contents", [True, False], "?"),
}  # fmt: skip


def request_of(**fields):
    """A ModelInferRequest from its JSON form."""
    return json_format.ParseDict({"model_name": "m", **fields}, MESSAGES["ModelInferRequest"]())


@pytest.mark.parametrize("kind", TYPED)
def test_typed_contents_become_bytes(kind):
    """Clients that fill InferTensorContents are understood, number by number."""
    field, values, dtype = TYPED[kind]
    one = {"name": "x", "datatype": kind, "shape": [len(values)], "contents": {field: values}}
    call = to_rest(request_of(inputs=[one], parameters={"a": {"int64_param": "3"}}))
    assert call.tensors == [np.array(values, dtype).tobytes()]
    head = json.loads(call.head)
    assert head["inputs"][0]["parameters"] == {"binary_data_size": len(call.tensors[0])}
    assert head["parameters"] == {"a": 3, "binary_data_output": True}


BAD = {
    "has 2 elements for 1": {"inputs": [{"name": "x"}], "raw_input_contents": ["", ""]},
    "beside raw_input_contents": {
        "inputs": [{"name": "x", "contents": {"fp32_contents": [1]}}], "raw_input_contents": [""],
    },
    "does not fit INT8": {
        "inputs": [{"name": "x", "datatype": "INT8", "contents": {"int_contents": [300]}}]
    },
    "has int_contents": {
        "inputs": [{"name": "x", "datatype": "FP32", "contents": {"int_contents": [3]}}]
    },
    "send it in raw": {"inputs": [{"name": "x", "datatype": "FP16"}]},
    "shared memory": {
        "inputs": [{"name": "x", "parameters": {"shared_memory_region": {"string_param": "r"}}}]
    },
}  # fmt: skip


@pytest.mark.parametrize("why", BAD)
def test_contents_that_do_not_fit_are_refused(why):
    """What cannot become a tensor is the caller's mistake, with its reason."""
    with pytest.raises(InvalidInputError, match=why):
        to_rest(request_of(**BAD[why]))


def status_of(client, *arguments, **named):
    """The status and message of a call that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*arguments, **named)
    return caught.value.status(), caught.value.message()


def test_refusals_have_grpcs_codes(client):
    """A wrong shape, a model that is not there, a message that is too long."""
    code, text = status_of(client, "m", [given("x", np.zeros((1, 3), np.float32), "FP32")])
    assert (code, "must have" in text) == ("StatusCode.INVALID_ARGUMENT", True)
    code, text = status_of(client, "none", [given("x", np.zeros((1, 4), np.float32), "FP32")])
    assert (code, "no model 'none'" in text) == ("StatusCode.NOT_FOUND", True)
    large = np.zeros((200_000, 4), np.float32)
    assert status_of(client, "m", [given("x", large, "FP32")])[0] == "StatusCode.RESOURCE_EXHAUSTED"
    with pytest.raises(InferenceServerException, match="no model 'gone'"):
        client.get_model_metadata("gone")


def rounds(count: int):
    """The slow model's input."""
    return given("rounds", np.array([count], np.int64), "INT64")


def test_a_deadline_is_kept(client):
    """The parameter and the call's own deadline both end a wait as DEADLINE_EXCEEDED."""
    code, text = status_of(client, "slow", [rounds(4000)], parameters={"deadline_ms": 20})
    assert (code, "deadline" in text) == ("StatusCode.DEADLINE_EXCEEDED", True)
    code, _ = status_of(client, "slow", [rounds(4000)], client_timeout=0.05)
    assert code == "StatusCode.DEADLINE_EXCEEDED"


def test_a_full_queue_says_when_to_come_again(gateway, client, tmp_path):
    """RESOURCE_EXHAUSTED with gRPC's pushback, once as many requests wait as may."""
    gateway.control.serve(package(tmp_path, slow(), name="queue"))
    done = []

    def callback(result, error):
        done.append(error or result)

    for _ in range(3):
        client.async_infer("queue", [rounds(20_000)], callback, parameters={"deadline_ms": 3000})
    wait_for(
        lambda: sum(
            one.in_flight for one in gateway.control.stats().values() if one.model == "queue"
        ) == 3, "three requests in the worker",
    )  # fmt: skip
    channel = grpc.insecure_channel(gateway.grpc)
    ask = channel.unary_unary(
        METHOD + "ModelInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )
    body = {
        "model_name": "queue",
        "inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1]}],
        "raw_input_contents": [base64.b64encode(np.int64(1).tobytes()).decode()],
    }
    with pytest.raises(grpc.RpcError) as caught:
        ask(json_format.ParseDict(body, service_pb2.ModelInferRequest()), timeout=10)
    trailing = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing["grpc-retry-pushback-ms"] == "1000"
    assert trailing["edgefleet-code"] == "queue_full"
    channel.close()
    wait_for(lambda: len(done) == 3, "the answers of the three")


def test_a_swap_fails_no_call(tmp_path):
    """Calls go on while the route moves from one version to the next and back."""
    one = DoorGateway()
    try:
        first, second = (
            package(tmp_path, linear(s), version=f"{v}.0.0") for v, s in ((1, 2.0), (2, 3.0))
        )
        one.control.serve(first)
        one.control.load(second)
        client = triton.InferenceServerClient(one.grpc)
        asked, stop, failed = [0], threading.Event(), []

        def ask():
            while not stop.is_set():
                try:
                    client.infer("m", [given("x", np.ones((1, 4), np.float32), "FP32")])
                    asked[0] += 1
                except InferenceServerException as error:
                    failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        for version in (second, first) * 5:
            before = asked[0]
            one.control.serve(version)
            wait_for(lambda before=before: asked[0] > before + 3 or failed, "calls after the swap")
        stop.set()
        thread.join()
        client.close()
        assert failed == []
    finally:
        one.close()


def test_the_door_dies_alone_and_comes_back(gateway):
    """A killed door takes no route with it: REST answers on, and gRPC answers again."""
    pid = wait_for(gateway.door, "the door")
    (gateway.run / "infer-grpc.addr").unlink()
    os.kill(pid, signal.SIGKILL)
    assert gateway.request("GET", "/v2/health/ready")[0] == 200
    fresh = triton.InferenceServerClient(gateway.grpc)
    wait_for(fresh.is_server_live, "the new door")
    fresh.close()
    assert gateway.door() not in {0, pid}


def test_the_door_holds_no_privilege(gateway):
    """Its process has given up capabilities and new privileges."""
    pid = wait_for(gateway.door, "the door")
    lines = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )  # fmt: skip
    assert int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0
    assert lines["NoNewPrivs"] == "1"


def test_without_the_door_nothing_of_grpc_is_loaded():
    """The gateway's own process imports neither gRPC nor protobuf, door or no door."""
    code = (
        "import sys, edgefleet_agent.gateway.__main__, edgefleet_agent.gateway.door\n"
        "print([m for m in sys.modules if m.startswith(('grpc', 'google.protobuf'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_gateway_takes_its_door_along():
    """The door ends with the gateway, also when that is killed."""
    one = DoorGateway()
    assert one.grpc
    pid = wait_for(one.door, "the door")
    one.process.kill()
    one.process.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{pid}").exists()
    one.close()


def test_a_call_whose_message_never_comes_ends():
    """It holds one of the places that all clients share, for the request timeout and no longer."""
    gateway, over = DoorGateway("--timeout-s", "1"), threading.Event()

    def nothing():
        over.wait(20)
        yield from ()

    try:
        with grpc.insecure_channel(gateway.grpc) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary(METHOD + "ServerLive")(nothing(), timeout=18)
            over.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "message did not come" in caught.value.details()
    finally:
        over.set()
        gateway.close()
