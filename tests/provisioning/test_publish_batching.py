"""`edgefleet model publish --max-batch-size`: said in the manifest, tried before it is signed."""

from __future__ import annotations

import numpy as np
import pytest

from edgefleet_shared.package import Batching, decode_manifest
from tests import batch_models, models
from tests import tflite_models as light


@pytest.fixture
def folder(tmp_path):
    """Models whose rows are independent, depend on one another, or are fixed at one."""
    for name, model in {
        "linear.onnx": models.linear(2.0), "centred.onnx": batch_models.centred(),
        "fixed.onnx": models.colours(), "linear.tflite": light.linear(2.0),
        "fixed.tflite": light.quantised(), "texts.onnx": models.echo_text(),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(model)
    x = np.random.default_rng(2).normal(size=(3, 1, 4)).astype(np.float32)
    np.savez(tmp_path / "golden.npz", x=x)
    return tmp_path


def arguments(folder, model, *more):
    """The command line of publishing a model that may be run in batches of eight."""
    return (
        "model", "publish", folder / model, "--name", "digits", "--version", "1.0.0",
        "--max-batch-size", "8", *more,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["linear.onnx", "linear.tflite"])
@pytest.mark.parametrize("golden", [True, False])
def test_the_manifest_says_it(operator, api, folder, model, golden):
    """Rows at most and the delay, for both runtimes, tried with golden vectors or zeros."""
    more = ("--golden", folder / "golden.npz") if golden else ()
    told = operator.json(*arguments(folder, model, "--max-queue-delay-us", "500", *more))
    (variant,) = decode_manifest(api.blobs[told["manifest"]]).variants
    assert variant.batching == Batching(8, 500)


def test_texts_may_be_batched(operator, api, folder):
    """BYTES have no zero; empty texts stand in for it."""
    told = operator.json(*arguments(folder, "texts.onnx"))
    (variant,) = decode_manifest(api.blobs[told["manifest"]]).variants
    assert variant.batching == Batching(8)


def test_another_variant_says_it_for_itself(operator, api, folder):
    """The command line speaks for the first variant; the file for its own."""
    file = folder / "variants.toml"
    file.write_text(
        '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "linear.tflite"\n'
        "batching = { max_batch_size = 4, max_queue_delay_microseconds = 200 }\n"
        '[[variant]]\nid = "plain"\nhardware = ["rpi5"]\nmodel = "linear.tflite"\n'
    )
    golden = ("--golden", folder / "golden.npz")
    told = operator.json(*arguments(folder, "linear.onnx", *golden, "--variants", file))
    variants = decode_manifest(api.blobs[told["manifest"]]).variants
    assert [one.batching for one in variants] == [Batching(8), Batching(4, 200), None]


@pytest.mark.parametrize(
    ("model", "golden", "code"),
    [
        ("centred.onnx", True, "batch_mismatch"),
        ("fixed.onnx", False, "manifest_batching"),
        ("fixed.tflite", False, "manifest_batching"),
    ],
)
def test_what_cannot_be_batched_is_not_published(operator, api, folder, model, golden, code):
    """The publisher hears at once what a device would find out."""
    more = ("--golden", folder / "golden.npz") if golden else ()
    assert operator.error(*arguments(folder, model, *more))["code"] == code
    assert not api.blobs


def test_a_delay_needs_a_size(operator, folder):
    """And a container is told by its own server's settings."""
    line = ("model", "publish", folder / "linear.onnx", "--name", "digits", "--version", "1.0.0")
    assert "--max-batch-size" in operator.error(*line, "--max-queue-delay-us", "5")["message"]
