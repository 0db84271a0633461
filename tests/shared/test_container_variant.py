"""A container variant names an image by its digest, or is refused."""

from __future__ import annotations

import json

import pytest

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import (
    FileEntry,
    Manifest,
    RuntimeNeed,
    TensorSpec,
    Variant,
    decode_manifest,
    encode_manifest,
)

HEX = "0123456789abcdef" * 4
IMAGE = f"registry.example:5000/models/digits@sha256:{HEX}"
TENSOR = TensorSpec("x", "FP32", [1])


def manifest(need: RuntimeNeed, files: list[FileEntry] | None = None, **fields) -> Manifest:
    """A manifest of one variant."""
    variant = Variant("box", ["*"], "cpu", need, files or [], [TENSOR], [TENSOR], **fields)
    return Manifest(1, "digits", "1.0.0", 1, 0, "2026-11-21T12:00:00Z", [variant])


@pytest.mark.parametrize(
    "image",
    [IMAGE, f"digits@sha256:{HEX}", f"localhost/a/b-c__d.e@sha256:{HEX}"],
)
def test_an_image_by_digest_is_a_variant_without_files(image):
    """The digest is what is signed; the package needs no other file."""
    one = manifest(RuntimeNeed("container", image=image))
    assert decode_manifest(encode_manifest(one)) == one


@pytest.mark.parametrize(
    "image",
    [
        "digits", "digits:latest", f"digits:1.0@sha256:{HEX}", f"digits@sha256:{HEX[1:]}",
        f"digits@sha256:{HEX.upper()}", f"digits@sha512:{HEX}", f"Digits@sha256:{HEX}",
        f"../digits@sha256:{HEX}", f"https://host/digits@sha256:{HEX}",
        f"host:99999999/d@sha256:{HEX}", f"a b@sha256:{HEX}", f"digits@sha256:{HEX}\n",
        f"-v@sha256:{HEX}", f"{'a' * 250}@sha256:{HEX}", "",
    ],
)  # fmt: skip
def test_a_tag_or_anything_else_is_refused(image):
    """What could mean another image tomorrow, or another command, is no name of an image."""
    with pytest.raises(InvalidInputError) as caught:
        encode_manifest(manifest(RuntimeNeed("container", image=image)))
    assert caught.value.code == "manifest_image"


def test_an_image_and_model_files_do_not_mix():
    """No image for a runtime of files, no model files or session options beside an image."""
    model = FileEntry("model.onnx", f"sha256:{HEX}", 4, "onnx")
    labels = FileEntry("labels.txt", f"sha256:{HEX}", 4, "labels")
    box = RuntimeNeed("container", image=IMAGE)
    encode_manifest(manifest(box, [labels]))
    for bad in (
        manifest(RuntimeNeed("onnxruntime", image=IMAGE), [model]),
        manifest(box, [model]),
        manifest(box, session_options={"intra_op_num_threads": 1}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            encode_manifest(bad)
        assert caught.value.code == "manifest_image"


def test_manifests_without_an_image_are_written_as_before():
    """What a package does not use does not stand in it, for devices that do not know it yet."""
    model = FileEntry("model.onnx", f"sha256:{HEX}", 4, "onnx")
    plain = manifest(RuntimeNeed("onnxruntime"), [model])
    assert json.loads(encode_manifest(plain))["variants"][0]["runtime"] == {"name": "onnxruntime"}
