"""A client that we did not write, unmodified."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.models import echo_text, halves, mlp, package


@pytest.fixture(scope="module")
def client(shared_gateway):
    """A Triton client on the loopback address."""
    one = triton.InferenceServerClient(shared_gateway.address)
    yield one
    one.close()


def test_health_and_metadata(client):
    """What the client asks about server and model is answered."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1.0.0")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "edgefleet"
    assert client.get_model_metadata("m", "1.0.0")["inputs"][0]["name"] == "x"
    assert client.get_model_repository_index()[0]["name"] == "m"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("version", ["", "1.0.0"])
def test_infer(client, binary_in, binary_out, version):
    """Binary and JSON tensors, in and out, with and without a version."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    given = triton.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(x, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("y", binary_data=binary_out)
    result = client.infer("m", [given], version, outputs=[wanted], request_id="r1")
    assert result.get_response()["id"] == "r1"
    np.testing.assert_allclose(result.as_numpy("y"), x.sum(axis=1, keepdims=True) * [2, 2])


def test_infer_without_naming_outputs(client, shared_gateway, tmp_path):
    """All outputs come, int64 among them."""
    shared_gateway.control.serve(package(tmp_path, mlp(), name="digits"))
    given = triton.InferInput("x", [3, 64], "FP32")
    given.set_data_from_numpy(np.ones((3, 64), np.float32))
    result = client.infer("digits", [given])
    label, scores = result.as_numpy("label"), result.as_numpy("scores")
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, scores.argmax(axis=1))


@pytest.mark.parametrize("binary", [True, False])
def test_text(client, shared_gateway, tmp_path, binary):
    """BYTES go both ways."""
    shared_gateway.control.serve(package(tmp_path, echo_text(), name="text"))
    given = triton.InferInput("t", [3], "BYTES")
    given.set_data_from_numpy(np.array(["a", "ö", ""], object), binary_data=binary)
    wanted = triton.InferRequestedOutput("u", binary_data=binary)
    found = client.infer("text", [given], outputs=[wanted]).as_numpy("u")
    assert [v.decode() if isinstance(v, bytes) else v for v in found] == ["a", "ö", ""]


def test_half_floats(client, shared_gateway, tmp_path):
    """FP16 goes as binary."""
    shared_gateway.control.serve(package(tmp_path, halves(), name="half"))
    x = np.array([0.5, -2, np.inf], np.float16)
    given = triton.InferInput("x", [3], "FP16")
    given.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer("half", [given]).as_numpy("y"), x)


def test_errors_reach_the_caller(client):
    """The message of a refusal is the exception's message."""
    given = triton.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(InferenceServerException, match="must have"):
        client.infer("m", [given])
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.infer("none", [given])


def test_the_asyncio_client(shared_gateway):
    """Its requests side by side are each answered, and its questions too."""

    async def ask():
        async with triton_aio.InferenceServerClient(shared_gateway.address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("m"))["outputs"][0]["name"] == "y"

            async def one(number: int) -> float:
                given = triton.InferInput("x", [1, 4], "FP32")
                given.set_data_from_numpy(np.full((1, 4), number, np.float32))
                return float((await client.infer("m", [given])).as_numpy("y")[0, 0])

            found = await asyncio.gather(*(one(number) for number in range(20)))
            with pytest.raises(InferenceServerException, match="no model 'none'"):
                await client.get_model_metadata("none")
            return found

    assert asyncio.run(ask()) == [8.0 * number for number in range(20)]


def test_statistics_and_parameters(client):
    """Statistics of what was asked, and a parameter of ours through a foreign client."""
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.ones((1, 4), np.float32))
    before = client.get_inference_statistics("m")["model_stats"][0]["inference_count"]
    client.infer("m", [given], parameters={"deadline_ms": 5000})
    after = client.get_inference_statistics("m")["model_stats"][0]["inference_count"]
    assert after == before + 1
