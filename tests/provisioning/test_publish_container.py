"""`edgefleet model publish --image`: a container alone, or beside a model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgefleet_shared.package import ContainerNeed, decode_manifest
from tests.provisioning import bad_models as bad

IMAGE = f"registry.example/models/digits@sha256:{'ab' * 32}"
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}


@pytest.fixture
def tensors(tmp_path):
    """A file that says what the image takes and gives."""
    path = tmp_path / "tensors.json"
    path.write_text(json.dumps(TENSORS))
    return path


def golden(path, *, answered=True):
    """One case, with its answer or without."""
    arrays = {"0.input.x": np.ones((1, 4), np.float32)}
    if answered:
        arrays["0.output.y"] = np.full((1, 1), 4, np.float32)
    np.savez(path, **arrays)
    return path


def command(*more):
    """The command without the options that say where."""
    return ("model", "publish", "--name", "digits", "--version", "1.0.0", "--image", IMAGE, *more)


def test_an_image_alone_is_a_version(operator, api, tmp_path, tensors):
    """Digest, limits, how it is asked, golden vectors: all of it is signed; nothing is pulled."""
    told = operator.json(*command(
        "--tensors", tensors, "--golden", golden(tmp_path / "g.npz"), "--memory-mb", 300,
        "--port", 8000, "--served-as", "sums", "--concurrency", 4, "--cpus", 1.5, "--pids", 64,
    ))  # fmt: skip
    (variant,) = decode_manifest(api.blobs[told["manifest"]]).variants
    assert (variant.runtime.name, variant.runtime.image) == ("container", IMAGE)
    assert variant.runtime.container == ContainerNeed(8000, "sums", 4, 1.5, 64)
    assert variant.limits.memory_mb == 300
    assert variant.golden.cases == 1
    assert [entry.role for entry in variant.files] == ["golden"]
    assert variant.inputs[0].shape == [-1, 4]


def test_an_image_beside_a_model_takes_and_gives_the_same(operator, api, tmp_path):
    """Two variants with one signature and the same golden vectors: a device chooses."""
    model = bad.save(bad.good(), tmp_path / "m")
    np.savez(tmp_path / "g.npz", x=np.ones((3, 1, 4), np.float32))
    told = operator.json(*command(model, "--golden", tmp_path / "g.npz"))
    plain, boxed = decode_manifest(api.blobs[told["manifest"]]).variants
    assert (plain.runtime.name, boxed.runtime.name) == ("onnxruntime", "container")
    assert (plain.inputs, plain.outputs) == (boxed.inputs, boxed.outputs)
    assert plain.golden == boxed.golden
    assert {entry.role for entry in boxed.files} == {"golden"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: [x.replace("@sha256:", ":") if isinstance(x, str) else x for x in a],
         "manifest_image"),
        (lambda a: [*a, "--concurrency", 1000], "manifest_container"),
        (lambda a: [x for x in a if x != "--tensors" and "tensors" not in str(x)], "usage"),
        (lambda a: [*a, "--golden", "unanswered"], "golden_cases"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_container_is_refused(operator, tmp_path, tensors, change, code):
    """A tag, what no device gives, no signature, an answer that nobody says: before signing."""
    unanswered = golden(tmp_path / "u.npz", answered=False)
    given = change([*command("--tensors", tensors)])
    given = [unanswered if x == "unanswered" else x for x in given]
    assert operator.error(*given)["code"] == code


def test_a_tensors_file_that_is_none_is_named(operator, tmp_path):
    """The hint shows what it looks like."""
    path = tmp_path / "t.json"
    path.write_text('{"inputs": 3}')
    error = operator.error(*command("--tensors", path))
    assert error["code"] == "bad_tensors"
    assert "datatype" in error["hint"]
