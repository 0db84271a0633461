"""Declared processing: what chains is worked out, what does not is refused with its reason."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from edgefleet_shared import processing as p
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import FileEntry, TensorSpec, decode_manifest, encode_manifest
from edgefleet_shared.processing_rules import check_labels, outer
from tests.shared.test_package import MANIFEST, MODEL, VARIANT

IMAGE_INPUT = TensorSpec("x", "FP32", [-1, 3, 32, 48])
SCORES = TensorSpec("s", "FP32", [-1, 10])
PRE = [p.DecodeImage(), p.Resize(width=48, height=32), p.Normalise(1 / 255), p.Layout()]
LABELS = FileEntry("labels.txt", "sha256:" + "a" * 64, 10, "labels")
BOXES = TensorSpec("d", "FP32", [1, 84, 8400])


def classify(**changes) -> p.Processing:
    """A classifier's processing, with changes."""
    return replace(p.Processing(PRE, [p.Softmax(), p.TopK(3, labels="labels")]), **changes)


def test_a_classifier_takes_an_image_and_gives_labels():
    """The outer signature follows from the steps and the model's own."""
    found = outer(classify(), [IMAGE_INPUT], [SCORES])
    assert found.inputs == [TensorSpec("image", "BYTES", [1])]
    assert [(t.name, t.datatype, t.shape) for t in found.outputs] == [
        ("scores", "FP32", [-1, 3]), ("classes", "INT64", [-1, 3]), ("labels", "BYTES", [-1, 3]),
    ]  # fmt: skip


def test_a_detector_gives_boxes_and_other_inputs_stay():
    """Suppression consumes what it names; inputs that no step makes are asked for as they are."""
    step = p.NonMaxSuppression(boxes="d", order="columns", format="cxcywh", labels="names")
    other = TensorSpec("threshold", "FP32", [1])
    found = outer(p.Processing(PRE, [step], input="x"), [other, IMAGE_INPUT], [BOXES, SCORES])
    assert [t.name for t in found.inputs] == ["threshold", "image"]
    assert [t.name for t in found.outputs] == ["s", "boxes", "scores", "classes", "names"]


def test_a_frame_is_a_tensor_of_any_size():
    """A camera's pixels need no file around them."""
    pre = [p.Frame("GRAY"), p.Resize(width=8, height=8), p.Quantise(0.5, 128, "UINT8"), p.Layout()]
    inputs = [TensorSpec("x", "UINT8", [1, 1, 8, 8])]
    assert outer(p.Processing(pre), inputs, [SCORES]).inputs == [
        TensorSpec("image", "UINT8", [-1, -1, 1])
    ]


def test_an_image_may_become_one_row():
    """A model that takes rows of numbers gets height x width x channels of them."""
    pre = [p.DecodeImage("GRAY"), p.Resize(8, 8), p.Normalise(1 / 16), p.Layout("FLAT")]
    row = TensorSpec("x", "FP32", [-1, 64])
    assert outer(p.Processing(pre), [row], [SCORES]).inputs[0].datatype == "BYTES"
    with pytest.raises(InvalidInputError, match=r"makes FP32 \[1, 64\]"):
        outer(p.Processing(pre), [replace(row, shape=[-1, 65])], [SCORES])


def test_a_manifest_with_processing_survives():
    """What is signed is what is read back, step by step."""
    variant = replace(
        VARIANT, inputs=[IMAGE_INPUT], outputs=[SCORES], files=[MODEL, LABELS], golden=None,
        processing=classify(),
    )  # fmt: skip
    manifest = replace(MANIFEST, variants=[variant])
    assert decode_manifest(encode_manifest(manifest)) == manifest


REFUSED = {
    "it has no step": p.Processing(),
    "more than 16 steps": p.Processing([*PRE, *[p.Cast("FP32")] * 13]),
    "begins with decode_image or frame": classify(pre=PRE[1:]),
    "stand first alone": classify(pre=[*PRE, p.DecodeImage()]),
    "`pre` makes FP32 [1, 3, -1, -1]": classify(pre=[p.DecodeImage(), *PRE[2:]]),
    "`pre` makes UINT8": classify(pre=[*PRE[:2], p.Layout()]),
    "max_pixels must be": classify(pre=[p.DecodeImage(max_pixels=2**40), *PRE[1:]]),
    "resize comes before": classify(pre=[*PRE[:3], PRE[1], PRE[3]]),
    "width and height must be": classify(pre=[PRE[0], p.Resize(0, 32), *PRE[2:]]),
    "fill must be": classify(pre=[PRE[0], p.Resize(48, 32, fill=300), *PRE[2:]]),
    "shorter is for center_crop": classify(pre=[PRE[0], p.Resize(48, 32, shorter=9), *PRE[2:]]),
    "mean needs one number": classify(pre=[*PRE[:2], p.Normalise(1.0, (1.0, 2.0)), PRE[3]]),
    "no std may be 0": classify(pre=[*PRE[:2], p.Normalise(1.0, std=(0.0,)), PRE[3]]),
    "normalise comes before layout": classify(pre=[*PRE[:2], PRE[3], PRE[2]]),
    "layout stands twice": classify(pre=[*PRE, PRE[3]]),
    "scale must be positive": classify(pre=[*PRE[:3], p.Quantise(0.0), PRE[3]]),
    "there is no 'z'": classify(post=[p.Softmax("z")]),
    "k is 11": classify(post=[p.TopK(11)]),
    "k is 0": classify(post=[p.TopK(0)]),
    "needs a name of its own": classify(post=[p.TopK(3, scores="a", classes="a")]),
    "'s' is BYTES": classify(post=[p.Argmax(classes="c", labels="s"), p.Sigmoid("s")]),
    "'classes' is INT64": classify(post=[p.Argmax(), p.Softmax()]),
    "say which tensor": classify(post=[p.TopK(3), p.Sigmoid()]),
    "is not there with the shape": classify(post=[p.Threshold(0.5, "s", ["gone"])]),
    "value must be finite": classify(post=[p.Threshold(float("nan"), "s")]),
    "'s' is FP32 [-1, 10]": classify(post=[p.NonMaxSuppression()]),
    "`image` needs": classify(image=""),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_chain_is_refused(why):
    """Each rule says what is wrong, with the stable code."""
    with pytest.raises(InvalidInputError) as caught:
        outer(REFUSED[why], [IMAGE_INPUT], [SCORES])
    assert why in caught.value.message
    assert caught.value.code == "manifest_processing"
    assert "reference.md" in caught.value.hint


SUPPRESSION = {
    "no scores beside": (p.NonMaxSuppression(), TensorSpec("d", "FP32", [1, 100, 4])),
    "iou_threshold": (p.NonMaxSuppression(iou_threshold=2.0), BOXES),
    "max_candidates <=": (p.NonMaxSuppression(max_candidates=10**6), BOXES),
    "of three axes": (p.NonMaxSuppression(boxes="d", scores="gone"), BOXES),
}


@pytest.mark.parametrize("why", SUPPRESSION)
def test_suppression_is_held_to_its_shapes_and_bounds(why):
    """Boxes without scores, and work without an end, are refused at the publisher's desk."""
    step, boxes = SUPPRESSION[why]
    with pytest.raises(InvalidInputError, match=why):
        outer(p.Processing(post=[step]), [IMAGE_INPUT], [boxes])


def test_the_image_may_not_take_another_inputs_name():
    """An application could not tell the two apart."""
    inputs = [IMAGE_INPUT, TensorSpec("image", "FP32", [1])]
    with pytest.raises(InvalidInputError, match="names another input"):
        outer(classify(input="x"), inputs, [SCORES])


def test_labels_must_be_in_the_package():
    """A step that names labels needs the file of that role."""
    variant = replace(
        VARIANT, inputs=[IMAGE_INPUT], outputs=[SCORES], files=[MODEL], golden=None,
        processing=classify(),
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="names labels"):
        encode_manifest(replace(MANIFEST, variants=[variant]))


@pytest.mark.parametrize(
    ("step", "output", "classes"),
    [
        (p.TopK(1, labels="l"), SCORES, 10),
        (p.Argmax(labels="l"), SCORES, 10),
        (p.NonMaxSuppression(order="columns", labels="l"), BOXES, 80),
        (p.NonMaxSuppression(objectness=True, labels="l"),
         TensorSpec("d", "FP32", [1, 25200, 85]), 80),
    ],
)  # fmt: skip
def test_each_class_has_a_label(step, output, classes):
    """As many labels as classes are enough; one less is not."""
    processing = p.Processing(post=[step])
    check_labels(processing, [output], classes)
    with pytest.raises(InvalidInputError, match=f"for {classes - 1} classes, and the model"):
        check_labels(processing, [output], classes - 1)


def test_a_step_nobody_knows_is_no_manifest():
    """Pure data of known kinds: an unknown step or field cannot be read."""
    variant = replace(VARIANT, inputs=[IMAGE_INPUT], outputs=[SCORES], golden=None, files=[MODEL])
    plain = json.loads(encode_manifest(replace(MANIFEST, variants=[variant])))
    for pre in ([{"step": "run_python"}], [{"step": "decode_image", "hook": "x"}]):
        plain["variants"][0]["processing"] = {"pre": pre}
        with pytest.raises(InvalidInputError) as caught:
            decode_manifest(json.dumps(plain).encode())
        assert caught.value.code == "malformed"
