"""The Open Inference Protocol on the wire, with raw sockets where a client would be too polite."""

from __future__ import annotations

import json
import socket
import stat

import numpy as np
import pytest

from tests.agent.gateways import fp32
from tests.models import echo_text, halves, logarithm, mlp, package

INFER = "/v2/models/m/infer"


def test_health_and_metadata(shared_gateway):
    """Health, server and model metadata have the protocol's fields, readiness both keys."""
    get = lambda path: shared_gateway.request("GET", path)[:2]  # noqa: E731
    assert get("/v2/health/live") == (200, {"live": True})
    assert get("/v2/health/ready") == (200, {"ready": True, "live": True})
    status, server = get("/v2")
    assert status == 200
    assert server.keys() == {"name", "version", "extensions"}
    status, model = get("/v2/models/m")
    assert status == 200
    assert model["versions"] == ["1.0.0"]
    assert model["platform"] == "onnx_onnxv1"
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert get("/v2/models/m/versions/1.0.0")[1] == model
    assert get("/v2/models/m/versions/1.0.0/ready")[0] == 200
    assert get("/v2/models/m/versions/9.0.0/ready")[0] == 404
    assert get("/v2/models/none/ready")[0] == 404
    index = [{"name": "m", "version": "1.0.0", "state": "READY", "reason": ""}]
    assert get("/v2/repository/index") == (200, index)


def test_not_ready_without_a_model(gateway):
    """A gateway without a model lives and is not ready."""
    assert gateway.request("GET", "/v2/health/live")[0] == 200
    status, body, _ = gateway.request("GET", "/v2/health/ready")
    assert (status, body) == (503, {"ready": False, "live": False})


def test_the_socket_is_for_user_and_group(shared_gateway):
    """Others may not connect to the inference socket, and only the user to the control socket."""
    assert stat.S_IMODE(shared_gateway.uds.stat().st_mode) == 0o660
    control = shared_gateway.run / "control.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("data", "shape"),
    [([1, 2, 3, 4], [1, 4]), ([[1, 2, 3, 4]], [1, 4]), ([[1, 2, 3, 4], [0, 0, 0, 1]], [2, 4])],
)
def test_json_inference(shared_gateway, data, shape):
    """Flat and nested JSON data give the same answer, with the request's id."""
    body = fp32("x", data, shape) | {"id": "seven"}
    status, answer, _ = shared_gateway.infer(body)
    sums = np.array(data, float).reshape(shape).sum(axis=1)
    assert status == 200
    assert answer["id"] == "seven"
    assert answer["model_name"] == "m"
    (output,) = answer["outputs"]
    assert output["shape"] == [shape[0], 2]
    assert output["data"] == [2 * value for value in sums for _ in range(2)]


BAD = {
    "not JSON": (b"{", "not as the protocol says"),
    "not UTF-8": (b'{"inputs": [], "id": "\xff"}', ""),
    "no inputs": ({}, "inputs"),
    "an input is missing": ({"inputs": []}, "'x' is missing"),
    "an unknown input": (fp32("z", [1, 2, 3, 4], [1, 4]), "no input 'z'"),
    "given twice": ({"inputs": fp32("x", [1] * 4, [1, 4])["inputs"] * 2}, "twice"),
    "wrong datatype": (
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 4], "data": [1] * 4}]},
        "must be 'FP32'",
    ),
    "wrong shape": (fp32("x", [1, 2, 3], [1, 3]), "must have [-1, 4]"),
    "wrong rank": (fp32("x", [1, 2, 3, 4], [4]), "must have"),
    "negative dimension": (fp32("x", [], [-1, 4]), "must have"),
    "too few elements": (fp32("x", [1, 2, 3], [1, 4]), "3 elements"),
    "ragged": (fp32("x", [[1, 2, 3], [4]], [2, 4]), "nested"),
    "text in numbers": (fp32("x", [1, 2, "3", 4], [1, 4]), "FP32"),
    "a number too large": (fp32("x", [1e300, 0, 0, 0], [1, 4]), "does not fit"),
    "no data": (
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]},
        "neither data nor binary",
    ),
    "unknown output": (
        fp32("x", [1, 2, 3, 4], [1, 4]) | {"outputs": [{"name": "q"}]},
        "no output 'q'",
    ),
    "binary size without bytes": (
        {
            "inputs": [
                {
                    "name": "x", "datatype": "FP32", "shape": [1, 4],
                    "parameters": {"binary_data_size": 16},
                }
            ]
        },
        "binary_data_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(shared_gateway, case):
    """What does not fit gets 400 and a message that names it; the next request is answered."""
    body, text = BAD[case]
    status, answer, _ = shared_gateway.infer(body)
    assert status == 400
    assert answer["code"] == "invalid_request"
    assert text in answer["error"]
    assert shared_gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/", {}, 404, "unknown_path"),
        ("GET", "/v2/models//infer", {}, 404, "unknown_path"),
        ("POST", "/v2/models/none/infer", {}, 404, "unknown_model"),
        ("POST", "/v2/models/m/versions/7.0.0/infer", {}, 404, "unknown_version"),
        ("GET", INFER, {}, 405, "method_not_allowed"),
        ("DELETE", "/v2/models/m", {}, 405, "method_not_allowed"),
        ("POST", INFER, {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ("POST", INFER, {"Content-Length": "1000001"}, 413, "body_too_large"),
        ("POST", INFER, {"Transfer-Encoding": "chunked"}, 411, "length_required"),
        ("POST", INFER, {"Inference-Header-Content-Length": "x"}, 400, "bad_request"),
        ("POST", INFER, {"Inference-Header-Content-Length": "99"}, 400, "invalid_request"),
        ("POST", INFER, {"X": "y" * 70_000}, 431, "head_too_large"),
    ],
)
def test_refusals(shared_gateway, method, path, headers, status, code):
    """Each wrong request has its own status and code."""
    got, body, _ = shared_gateway.request(method, path, b"" if method == "POST" else None, headers)
    assert (got, body["code"]) == (status, code)


def raw(gateway, data: bytes, *, until: int) -> bytes:
    """Send bytes and read until so many answers have begun."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(gateway.uds))
        sock.sendall(data)
        got = b""
        while got.count(b"HTTP/1.1 ") < until or not got.endswith(b"}"):
            part = sock.recv(65536)
            assert part, got
            got += part
        return got


def test_pipelined_requests_are_answered_in_order(shared_gateway):
    """Requests sent in one go come back one by one, in order, errors among them."""
    parts = []
    for index in range(50):
        body = json.dumps(fp32("x", [index, 0, 0, 0], [1, 4])).encode()
        if index == 20:
            body = b"{}"
        parts.append(
            b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
        )
        parts.append(body)
        if index == 30:
            parts.append(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
    got = raw(shared_gateway, b"".join(parts), until=51)
    answers = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in got.split(b"HTTP/1.1 ")[1:]]
    assert answers.pop(31) == {"live": True}
    assert "error" in answers.pop(20)
    values = [answer["outputs"][0]["data"][0] for answer in answers]
    assert values == [2.0 * index for index in range(50) if index != 20]


def test_expect_continue_and_a_byte_at_a_time(shared_gateway):
    """A client that waits for 100 Continue gets it; a slow client is understood all the same."""
    body = json.dumps(fp32("x", [1, 2, 3, 4], [1, 4])).encode()
    head = (
        b"POST %s HTTP/1.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n"
        b"Connection: close\r\n\r\n" % (INFER.encode(), len(body))
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(shared_gateway.uds))
        for byte in head:
            sock.sendall(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        got = b""
        while part := sock.recv(65536):
            got += part
    assert b"200 OK" in got
    assert b"Connection: close" in got


def test_garbage_is_refused(shared_gateway):
    """What is not HTTP gets 400 and the connection is closed."""
    got = raw(shared_gateway, b"\x16\x03\x01 hello\r\n\r\n", until=1)
    assert got.startswith(b"HTTP/1.1 400 ")


def test_deadline(shared_gateway, tmp_path):
    """A request whose time is up before its worker is done gets 504."""
    from tests.models import slow

    shared_gateway.control.serve(package(tmp_path, slow(), name="slow"))
    one = {"name": "rounds", "datatype": "INT64", "shape": [1]}
    headers = {"Inference-Timeout-Ms": "30"}
    body = {"inputs": [one | {"data": [20_000]}]}
    status, answer, _ = shared_gateway.infer(body, "slow", headers)
    assert (status, answer["code"]) == (504, "deadline")
    assert shared_gateway.infer({"inputs": [one | {"data": [1]}]}, "slow")[0] == 200


def test_every_datatype_that_the_models_have(shared_gateway, tmp_path):
    """int64 labels, text both ways, float16 as binary alone, NaN as null and counted."""
    serve = shared_gateway.control.serve
    serve(package(tmp_path, mlp(), name="mlp"))
    status, answer, _ = shared_gateway.infer(fp32("x", [0.5] * 64, [1, 64]), "mlp")
    assert status == 200
    label, scores = answer["outputs"]
    assert (label["datatype"], label["shape"]) == ("INT64", [1])
    assert label["data"] == [int(np.argmax(scores["data"]))]

    serve(package(tmp_path, echo_text(), name="text"))
    text = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["ä", ""]}
    status, answer, _ = shared_gateway.infer({"inputs": [text]}, "text")
    assert (status, answer["outputs"][0]["data"]) == (200, ["ä", ""])

    serve(package(tmp_path, halves(), name="half"))
    half = {"name": "x", "datatype": "FP16", "shape": [1], "data": [1.0]}
    assert shared_gateway.infer({"inputs": [half]}, "half")[0] == 400
    connection = shared_gateway.connect()
    raw_body = {"Inference-Header-Content-Length": "0"}
    connection.request("POST", "/v2/models/half/infer", b"\x00\x3c\x00\x40", raw_body)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    assert data[int(response.headers["Inference-Header-Content-Length"]) :] == b"\x00\x3c\x00\x40"

    log = package(tmp_path, logarithm(), name="log")
    serve(log)
    status, answer, _ = shared_gateway.infer(fp32("x", [-1.0, 1.0]), "log")
    assert (status, answer["outputs"][0]["data"]) == (200, [None, 0.0])
    assert shared_gateway.control.stats()[log.spec.digest].nonfinite == 1
