"""An application sends a JPEG and gets labels: through a real gateway and a sandboxed worker."""

from __future__ import annotations

import base64
import io
import json
import struct

import numpy as np
import pytest
from msgspec import msgpack
from msgspec.structs import replace
from PIL import Image

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.toolbox import model_spec
from edgefleet_agent.worker.bodies import told
from edgefleet_shared import processing as p
from tests import tflite_models as light
from tests.models import colours, linear, logarithm, package
from tests.shared.test_package import MANIFEST, VARIANT

STEPS = p.Processing(
    pre=[p.DecodeImage(), p.Resize(8, 8), p.Normalise(1 / 255), p.Layout()],
    post=[p.TopK(2, labels="labels")],
)
LABELS = b"red\ngreen\nblue\n"
PATH = "/v2/models/colours/infer"


def jpeg(*colour: int) -> bytes:
    """A picture of one colour, 64 x 48."""
    held = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(held, "JPEG", quality=95)
    return held.getvalue()


@pytest.fixture(scope="module")
def door(shared_gateway, tmp_path_factory):
    """A gateway that serves a model of three colours, with its processing."""
    folder = tmp_path_factory.mktemp("colours")
    made = package(folder, colours(), name="colours", labels=LABELS, processing=STEPS)
    shared_gateway.control.serve(made)
    return shared_gateway


def as_json(data: bytes, **fields) -> dict:
    """A request that carries an image in JSON."""
    text = base64.b64encode(data).decode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    return {"inputs": [image], **fields}


def outputs(answer: dict) -> dict:
    """Data of an answer by name."""
    return {one["name"]: one["data"] for one in answer["outputs"]}


def test_a_jpeg_as_the_body_gets_labels(door):
    """A camera posts the file; the answer is JSON with labels, classes and scores."""
    head = {"Inference-Header-Content-Length": "0"}
    status, answer, _ = door.request("POST", PATH, jpeg(20, 250, 60), head)
    assert status == 200, answer
    found = outputs(answer)
    assert found["labels"] == ["green", "blue"]
    assert found["classes"] == [1, 2]
    np.testing.assert_allclose(found["scores"], [250 / 255, 60 / 255], atol=0.02)
    assert [one["shape"] for one in answer["outputs"]] == [[1, 2]] * 3


def test_a_jpeg_without_the_header_is_told_which_one(door):
    """What curl sends by `--data-binary @photo.jpg` alone gets the line to add; so does a form."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, answer, _ = door.request("POST", PATH, jpeg(20, 250, 60), kind)
    assert (status, answer["code"]) == (400, "invalid_request")
    assert answer["error"] == (
        "The body is not JSON; it begins like a JPEG file. If it is the input 'image' itself, add "
        "the header 'Inference-Header-Content-Length: 0' (curl: --header "
        "'Inference-Header-Content-Length: 0' --data-binary @FILE)."
    )
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + jpeg(1, 2, 3)
    status, answer, _ = door.request("POST", PATH, form + b"\r\n--x--\r\n")
    assert (status, "begins like a form" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "inputs", "said"),
    [
        (b"{", ["x"], "not as the protocol says: why"),
        (b"", ["x"], "not as the protocol says: why"),
        (b"[1]", ["x"], "not as the protocol says: why"),
        (b"\x89PNG\r\n", ["x"], "a PNG file. If it is the input 'x'"),
        (bytes(16), ["x"], "The body is not JSON. If it is the input 'x'"),
        (bytes(16), ["x", "mask"], "This model takes x, mask"),
    ],
)
def test_what_is_said_of_a_body_that_is_not_json(body, inputs, said):
    """Text gets the decoder's reason, a file its kind, several inputs the form that they need."""
    assert said in told(memoryview(body), inputs, "why")


def test_a_jpeg_in_json_and_in_binary_get_the_same(door):
    """Base64 in JSON and a length-prefixed element are the same image."""
    data = jpeg(20, 60, 250)
    status, plain, _ = door.request("POST", PATH, as_json(data, id="7"))
    assert status == 200, plain
    assert outputs(plain)["labels"] == ["blue", "green"]
    assert plain["id"] == "7"
    framed = struct.pack("<I", len(data)) + data
    text = (
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":'
        b'{"binary_data_size":%d}}]}' % len(framed)
    )
    head = {"Inference-Header-Content-Length": str(len(text))}
    status, binary, _ = door.request("POST", PATH, text + framed, head)
    assert (status, outputs(binary)) == (200, outputs(plain))


def test_raw_reaches_the_bare_model(door):
    """With the parameter `raw` the model's own tensors go in and out."""
    x = np.zeros((1, 3, 8, 8), np.float32)
    x[:, 2] = 4
    given = {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": x.ravel().tolist()}
    body = {"inputs": [given], "parameters": {"raw": True}}
    status, answer, _ = door.request("POST", PATH, body)
    assert (status, outputs(answer)) == (200, {"y": [0, 0, 4]})
    status, answer, _ = door.request("POST", PATH, {"inputs": [given]})
    assert status == 400
    assert "no input 'x'; it has image" in answer["error"]


def test_metadata_shows_what_an_application_sends_and_gets(door):
    """Outer tensors, and beside them the bare ones."""
    _, found, _ = door.request("GET", "/v2/models/colours")
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    assert [one["name"] for one in found["outputs"]] == ["scores", "classes", "labels"]
    assert found["raw_inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8]}]
    _, found, _ = door.request("GET", "/v2/models/m")
    assert "raw_inputs" not in found


REFUSED = {
    "not base64": {"data": ["***"]},
    "another format": {"data": [base64.b64encode(b"no image").decode()]},
    "must have": {"data": ["", ""], "shape": [2]},
    "not BYTES": {"data": [7]},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_image_is_the_callers_mistake(door, why):
    """400 with the reason, and the worker serves on."""
    body = as_json(b"")
    body["inputs"][0] |= REFUSED[why]
    status, answer, _ = door.request("POST", PATH, body)
    assert (status, why in answer["error"]) == (400, True), answer
    head = {"Inference-Header-Content-Length": "0"}
    assert door.request("POST", PATH, jpeg(250, 0, 0), head)[0] == 200


def test_a_package_whose_processing_cannot_run_is_not_proved(gateway, tmp_path):
    """Labels that do not suffice, or steps that the model does not suit, fail before a swap."""
    few = package(tmp_path, colours(), labels=b"red\n", processing=STEPS)
    outcome = gateway.control.prove(few)
    assert (outcome.ok, outcome.code) == (False, "manifest_processing")
    assert "labels for 1 classes, and the model 3" in outcome.message
    wrong = replace(few.spec, outputs=[replace(few.spec.outputs[0], shape=[1, -1])])
    few.spec = replace(wrong, processing=replace(STEPS, post=[p.TopK(3, labels="labels")]))
    outcome = gateway.control.prove(few)
    assert (outcome.ok, outcome.code) == (False, "load_failed")
    assert "labels for 1 classes" in outcome.message
    few.spec = replace(wrong, processing=replace(STEPS, post=[p.TopK(3)]))
    assert gateway.control.prove(few).ok


def test_a_camera_keeps_its_connection(door):
    """Small photos, a large and a damaged one, in turns: each gets its own answer."""
    noise = np.random.default_rng(1).integers(0, 90, (400, 400, 3), np.uint8)
    noise[..., 0] += 160
    large = png(noise)
    assert len(large) > 200_000
    head = {"Inference-Header-Content-Length": "0"}
    asked = [(jpeg(0, 0, 250), "blue"), (jpeg(0, 250, 0), "green")] * 10
    asked += [(large, "red"), (b"damaged", ""), (jpeg(0, 250, 0), "green"), (large, "red")]
    connection = door.connect()
    for data, want in asked:
        connection.request("POST", PATH, data, head)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == (200 if want else 400), answer
        assert not want or outputs(answer)["labels"][0] == want
    connection.close()


def png(pixels: np.ndarray) -> bytes:
    """Pixels as a file that loses nothing."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def test_a_tflite_model_is_asked_by_images_too(gateway, tmp_path):
    """HWC floats for a convolution, one row of quantised numbers for another: as numpy has it."""
    head = {"Inference-Header-Content-Length": "0"}
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    pre = [p.DecodeImage(), p.Resize(8, 8), p.Normalise(1 / 255), p.Layout("HWC")]
    whole = p.Processing(pre, [p.TopK(5)])
    gateway.control.serve(package(tmp_path, light.conv(), name="conv", processing=whole))
    status, answer, _ = gateway.infer(png(pixels), "conv", head)
    assert status == 200, answer
    want = light.conv_answer((pixels / np.float32(255))[None].astype(np.float32))
    np.testing.assert_allclose(outputs(answer)["scores"], np.sort(want)[::-1], rtol=1e-4)

    rows = p.Processing(
        [p.DecodeImage("GRAY"), p.Resize(2, 2), p.Normalise(1 / 16), p.Quantise(0.5),
         p.Layout("FLAT")],
        [p.Dequantise(1.0)],
    )  # fmt: skip
    gateway.control.serve(package(tmp_path, light.quantised(), name="row", processing=rows))
    grey = np.array([[16, 32], [48, 64]], np.uint8)
    status, answer, _ = gateway.infer(png(grey), "row", head)
    assert (status, outputs(answer)) == (200, {"r": [10.0, 10.0]}), answer


def test_what_a_manifest_declares_reaches_the_worker():
    """Agentd hands the variant's processing on with the rest of its specification."""
    variant = replace(VARIANT, processing=STEPS)
    spec = model_spec(replace(MANIFEST, variants=[variant]), variant, "sha256:0", 1)
    again = msgpack.decode(msgpack.encode(spec), type=ModelSpec)
    assert again.processing == STEPS


def test_a_nan_behind_labels_still_counts(gateway, tmp_path):
    """Processing hides a NaN from the application, not from the counters that judge a version."""
    made = package(
        tmp_path, logarithm(), labels=b"a\nb\n",
        processing=p.Processing(post=[p.Argmax(labels="labels")]),
    )  # fmt: skip
    gateway.control.serve(made)
    given = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, -1.0]}
    status, answer, _ = gateway.infer({"inputs": [given]})
    assert status == 200
    assert outputs(answer)["labels"] in (["a"], ["b"])
    assert gateway.control.stats()[made.spec.digest].nonfinite == 1


def test_a_frame_goes_in_as_a_tensor(gateway, tmp_path):
    """A camera's own pixels, as the whole body's binary tensor, need no file format."""
    steps = replace(STEPS, pre=[p.Frame(), *STEPS.pre[1:]])
    gateway.control.serve(package(tmp_path, colours(), labels=LABELS, processing=steps))
    frame = np.zeros((30, 40, 3), np.uint8)
    frame[..., 0] = 200
    text = (
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[30,40,3],"parameters":'
        b'{"binary_data_size":3600}}]}'
    )
    head = {"Inference-Header-Content-Length": str(len(text))}
    status, answer, _ = gateway.infer(text + frame.tobytes(), headers=head)
    assert status == 200, answer
    assert outputs(answer)["labels"] == ["red", "green"]


def test_labels_without_a_picture(gateway, tmp_path):
    """Steps after a model that takes plain tensors; the input stays as it was, batches too."""
    made = package(
        tmp_path, linear(2.0), labels=b"one\ntwo\n",
        processing=p.Processing(post=[p.Softmax(), p.TopK(1, labels="labels")]),
    )  # fmt: skip
    gateway.control.serve(made)
    given = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1.0] * 8}
    status, answer, _ = gateway.infer({"inputs": [given]})
    assert status == 200, answer
    assert outputs(answer)["labels"] == ["one", "one"]
    assert outputs(answer)["scores"] == [0.5, 0.5]
