"""`edgefleet model publish` and `lint` of TFLite models, and several variants in one package."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgefleet_provisioning import runners
from edgefleet_shared import safetensors_file
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import decode_manifest, fitting_variants, target_path
from tests import models
from tests import tflite_models as light
from tests.adversarial.hostile_tflite import VARIANTS


@pytest.fixture
def folder(tmp_path):
    """One model in two formats, and golden inputs for both."""
    (tmp_path / "digits.onnx").write_bytes(models.mlp())
    (tmp_path / "digits.tflite").write_bytes(light.mlp())
    x = np.random.default_rng(2).normal(size=(3, 1, 64)).astype(np.float32)
    np.savez(tmp_path / "golden.npz", x=x)
    return tmp_path


def publish(operator, folder, model, *more):
    """Publish a model, and return what the command tells."""
    return operator.json(
        "model", "publish", folder / model, "--name", "digits", "--version", "1.0.0",
        "--golden", folder / "golden.npz", *more,
    )  # fmt: skip


def published(api, told):
    """The manifest that was published."""
    return decode_manifest(api.blobs[told["manifest"]])


def answers(api, variant):
    """The scores in a variant's golden file."""
    tensors = safetensors_file.decode(api.blobs[variant.file("golden").digest])
    return np.stack([
        np.frombuffer(tensors[f"{case}.output.scores"].data, "<f4")
        for case in range(variant.golden.cases)
    ])  # fmt: skip


def test_a_tflite_model_becomes_a_litert_variant(operator, api, folder):
    """Signature, golden answers and tools come from the file and the runtime that is here."""
    manifest = published(api, publish(operator, folder, "digits.tflite"))
    (variant,) = manifest.variants
    assert (variant.runtime.name, variant.runtime.opsets) == ("litert", {})
    assert api.blobs[variant.file("tflite").digest] == light.mlp()
    assert [(s.name, s.datatype, s.shape) for s in variant.inputs] == [("x", "FP32", [-1, 64])]
    assert [(s.name, s.datatype, s.shape) for s in variant.outputs] == [
        ("label", "INT64", [-1]), ("scores", "FP32", [-1, 10]),
    ]  # fmt: skip
    w = light.weights(0)
    x = np.load(folder / "golden.npz")["x"][:, 0]
    wanted = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    np.testing.assert_allclose(answers(api, variant), wanted, rtol=1e-4, atol=1e-4)
    assert "ai-edge-litert 2" in manifest.provenance["tools"]
    assert "onnx" not in manifest.provenance["tools"]


def test_publishing_a_tflite_model_again_changes_nothing(operator, api, folder):
    """The same file with the same options is the same package."""
    first = publish(operator, folder, "digits.tflite")
    again = publish(operator, folder, "digits.tflite")
    assert (again["already_published"], again["manifest"]) == (True, first["manifest"])


def test_onnx_and_tflite_of_one_model_are_one_package(operator, api, folder):
    """Each device finds the variant for its hardware; both have the same golden inputs."""
    (folder / "more.toml").write_text(
        '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "digits.tflite"\n'
        "session_options = { num_threads = 2 }\n"
    )
    told = publish(
        operator, folder, "digits.onnx", "--variants", folder / "more.toml",
        "--file-license", "lite/model.tflite=MIT",
    )  # fmt: skip
    manifest = published(api, told)
    onnx, lite = manifest.variants
    assert (onnx.id, onnx.runtime.name, lite.id, lite.runtime.name) == (
        "cpu", "onnxruntime", "lite", "litert",
    )  # fmt: skip
    assert fitting_variants(manifest, manifest.variants, "rpi4") == [lite]
    assert fitting_variants(manifest, manifest.variants, "anything") == [onnx]
    assert lite.file("tflite").path == "lite/model.tflite"
    assert lite.file("tflite").license == "MIT"
    assert lite.golden.path == "lite/golden.safetensors"
    np.testing.assert_allclose(answers(api, onnx), answers(api, lite), rtol=1e-4, atol=1e-4)
    assert {file["path"] for file in told["files"]} == {
        "model.onnx", "golden.safetensors", "lite/model.tflite", "lite/golden.safetensors",
    }  # fmt: skip
    sbom = operator.json("model", "sbom", "digits", "1.0.0")
    assert [c["name"] for c in sbom["components"]] == [f["path"] for f in told["files"]]


def test_a_container_can_be_a_variant_too(operator, api, folder):
    """It takes and gives what the model does, and proves itself by the model's golden vectors."""
    image = f"registry.example/digits@sha256:{'0' * 64}"
    (folder / "more.toml").write_text(
        f'[[variant]]\nid = "box"\nhardware = ["server"]\nimage = "{image}"\nfallback = "cpu"\n'
        "container = { port = 8000 }\n"
    )
    told = publish(operator, folder, "digits.onnx", "--variants", folder / "more.toml")
    first, box = published(api, told).variants
    assert (box.runtime.image, box.runtime.container.port, box.fallback) == (image, 8000, "cpu")
    assert (box.inputs, box.outputs, box.golden) == (first.inputs, first.outputs, first.golden)
    assert [entry.role for entry in box.files] == ["golden"]


def test_each_variant_may_have_its_own_processing(operator, api, folder):
    """What is left out is the command line's; what a variant names is checked against its model."""
    (folder / "steps.toml").write_text('[[post]]\nstep = "softmax"\ninput = "scores"\n')
    (folder / "lite.toml").write_text('[[post]]\nstep = "sigmoid"\ninput = "scores"\n')
    (folder / "more.toml").write_text(
        '[[variant]]\nid = "a"\nhardware = ["b"]\nmodel = "digits.tflite"\n'
        'processing = "lite.toml"\n'
        '[[variant]]\nid = "c"\nhardware = ["d"]\nmodel = "digits.tflite"\n'
    )
    more = ("--processing", folder / "steps.toml", "--variants", folder / "more.toml")
    told = publish(operator, folder, "digits.onnx", *more)
    tags = [v.processing.post[0].__struct_config__.tag for v in published(api, told).variants]
    assert tags == ["softmax", "sigmoid", "softmax"]
    (folder / "lite.toml").write_text('[[post]]\nstep = "sigmoid"\ninput = "gone"\n')
    failed = operator.error(
        "model", "publish", folder / "digits.onnx", "--name", "digits", "--version", "2.0.0", *more
    )
    assert failed["code"] == "manifest_processing"


def turned_round() -> bytes:
    """Return the same network with its outputs the other way round."""
    net = light.unpack(light.mlp())
    graph = net.subgraphs[0]
    graph.outputs = list(reversed(list(graph.outputs)))
    net.signatureDefs[0].outputs = list(reversed(net.signatureDefs[0].outputs))
    return light.pack(net)


def test_a_variant_with_other_tensors_is_refused_and_both_are_named(operator, api, folder):
    """Nothing is published: not a warning, for an application would meet it on some devices."""
    (folder / "conv.tflite").write_bytes(light.conv())
    (folder / "more.toml").write_text(
        '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "conv.tflite"\n'
    )
    failed = operator.error(
        "model", "publish", folder / "digits.onnx", "--name", "digits", "--version", "1.0.0",
        "--variants", folder / "more.toml",
    )  # fmt: skip
    assert failed["code"] == "variant_tensors"
    for said in ("'lite'", "'cpu'", "'x' (FP32 [-1, 64])", "'image' (FP32 [1, 8, 8, 3])"):
        assert said in failed["message"]
    assert "processing" in failed["hint"]
    assert not api.blobs


def test_the_order_of_an_exporter_is_no_difference(operator, api, folder):
    """Outputs stand in the first variant's order, whatever order the file has them in."""
    (folder / "digits.tflite").write_bytes(turned_round())
    (folder / "more.toml").write_text(
        '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "digits.tflite"\n'
    )
    told = publish(operator, folder, "digits.onnx", "--variants", folder / "more.toml")
    onnx, lite = published(api, told).variants
    assert lite.outputs == onnx.outputs
    np.testing.assert_allclose(answers(api, onnx), answers(api, lite), rtol=1e-4, atol=1e-4)


def test_declared_steps_make_two_layouts_one_model(operator, api, folder):
    """ONNX as CHW beside TFLite as HWC: the photo is the same, so is what comes out."""
    (folder / "photo.onnx").write_bytes(models.colours())
    net = light.Net()
    x, y = net.tensor("x", [1, 8, 8, 3]), net.tensor("y", [1, 3])
    axes = net.constant("axes", np.array([1, 2], np.int32))
    net.op("MEAN", [x, axes], [y], kind="ReducerOptions", keepDims=False)
    net.ends([x], [y])
    net.sign()
    (folder / "photo.tflite").write_bytes(net.data())
    decode = '[[pre]]\nstep = "decode_image"\n[[pre]]\nstep = "resize"\nwidth = 8\nheight = 8\n'
    (folder / "chw.toml").write_text(
        decode + '[[pre]]\nstep = "normalise"\n[[pre]]\nstep = "layout"\n'
    )
    (folder / "hwc.toml").write_text((folder / "chw.toml").read_text() + 'order = "HWC"\n')
    variant = '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "photo.tflite"\n'
    (folder / "more.toml").write_text(variant + 'processing = "hwc.toml"\n')
    told = operator.json(
        "model", "publish", folder / "photo.onnx", "--name", "digits", "--version", "1.0.0",
        "--processing", folder / "chw.toml", "--variants", folder / "more.toml",
    )  # fmt: skip
    onnx, lite = published(api, told).variants
    assert onnx.inputs != lite.inputs
    assert lite.processing.pre[-1].order == "HWC"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nonsense", "bad_variants"),
        ('[[variant]]\nid = "a"\nhardware = ["*"]\n', "bad_variants"),
        ('[[variant]]\nid = "a"\nhardware = ["*"]\nmodel = "m"\nimage = "i"\n', "bad_variants"),
        ('[[variant]]\nid = "cpu"\nhardware = ["*"]\nmodel = "digits.tflite"\n', "bad_variants"),
        ('[[variant]]\nid = "a"\nhardware = ["*"]\nmodel = "m"\ncode = "x.py"\n', "bad_variants"),
        ('[[variant]]\nid = "a"\nhardware = ["*"]\nmodel = "gone.tflite"\n', "missing_file"),
        (('[[variant]]\nid = "a"\nhardware = ["b"]\nmodel = "digits.tflite"\n'
         '[variant.session_options]\nexecution_mode = "parallel"\n'), "manifest_session_option"),
        ('[[variant]]\nid = "a"\nhardware = ["b"]\nmodel = "digits.tflite"\nfallback = "z"\n',
         "manifest_fallback"),
    ],
)  # fmt: skip
def test_variants_that_cannot_be_are_refused(operator, folder, text, code):
    """Unknown fields, no model or two, a taken id, options of another runtime: each its code."""
    (folder / "more.toml").write_text(text)
    failed = operator.error(
        "model", "publish", folder / "digits.onnx", "--name", "digits", "--version", "1.0.0",
        "--variants", folder / "more.toml",
    )  # fmt: skip
    assert failed["code"] == code, failed


@pytest.mark.parametrize("name", VARIANTS)
def test_what_no_device_would_run_is_not_published(cli, folder, name):
    """The publisher's lint knows the device's rules, and says where and what to do."""
    (folder / "bad.tflite").write_bytes(VARIANTS[name].build())
    result = cli.run("model", "lint", folder / "bad.tflite", "--json", code=None)
    told = json.loads(result.stdout.splitlines()[-1])
    if name == "another accelerator's operator":  # it is not known here for whom it is
        assert (result.exit_code, told["ok"]) == (0, True)
        return
    first, *_ = told.get("findings") or [told["error"]]
    assert (result.exit_code, first["code"]) == (2, VARIANTS[name].code)
    assert first["hint"]


def test_lint_tells_what_a_good_tflite_model_takes(cli, folder):
    """It may be published: operators, tensors, names and shapes are told."""
    told = cli.json("model", "lint", folder / "digits.tflite")
    assert (told["ok"], told["nodes"], told["tensors"]) == (True, 3, 9)
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]


def test_text_and_several_signatures_cannot_be_served(cli, folder):
    """What no client could send, and what nobody chose, is refused at the publisher's desk."""
    (folder / "text.tflite").write_bytes(light.echo_text())
    model = light.unpack(light.mlp())
    model.signatureDefs = [*model.signatureDefs, *light.unpack(light.mlp()).signatureDefs]
    for one, key in zip(model.signatureDefs, ("train", "infer"), strict=True):
        one.signatureKey = key
    (folder / "two.tflite").write_bytes(light.pack(model))
    for name, words in (("text", "cannot be sent"), ("two", "'train', 'infer'")):
        result = cli.run("model", "lint", folder / f"{name}.tflite", "--json", code=2)
        (finding,) = json.loads(result.stdout)["findings"]
        assert (finding["code"], words in finding["message"]) == ("io_type", True)


def test_without_a_runtime_the_extra_is_named(operator, folder, monkeypatch):
    """A machine without LiteRT is told what to install; nothing is published unproved."""
    monkeypatch.setattr(runners, "LIBRARIES", {"ai-edge-litert": "no_such_package"})
    failed = operator.error(
        "model", "publish", folder / "digits.tflite", "--name", "digits", "--version", "1.0.0",
    )  # fmt: skip
    assert failed["code"] == "missing_extra"
    assert "edgefleet[litert]" in failed["hint"]


def test_a_real_fleet_manager_takes_it(owned, folder, tmp_path):
    """The fleet manager accepts, stores and lists both variants; a TUF client finds them."""
    (folder / "more.toml").write_text(
        '[[variant]]\nid = "lite"\nhardware = ["rpi4"]\nmodel = "digits.tflite"\n'
    )
    told = owned.cli.json(
        "model", "publish", folder / "digits.onnx", "--name", "digits", "--version", "1.0.0",
        "--golden", folder / "golden.npz", "--variants", folder / "more.toml", "--yes",
    )  # fmt: skip
    shown = owned.cli.json("model", "show", "digits", "1.0.0")
    assert [(v["id"], v["runtime"], v["hardware"]) for v in shown["variants"]] == [
        ("cpu", "onnxruntime", ["*"]), ("lite", "litert", ["rpi4"]),
    ]  # fmt: skip
    target = owned.device(tmp_path, target_path("digits", "1.0.0"))
    assert target.custom["hardware"] == ["*", "rpi4"]
    path = "/v1/models/digits/versions/1.0.0/manifest"
    manifest = owned.cloud.client.get(path).content
    target.verify_length_and_hashes(manifest)
    assert sha256_digest(manifest) == told["manifest"]
    lite = decode_manifest(manifest).variants[1]
    blob = owned.cloud.client.get(f"/v1/blobs/{lite.file('tflite').digest}").content
    assert blob == light.mlp()
