"""How declared steps chain: what an application sends and gets, worked out from the manifest alone.

The publisher's desk, the fleet manager, the gateway and the worker all ask `outer`, so that they
cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from msgspec import structs

from edgefleet_shared import processing as steps
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.manifest import TensorSpec, Variant
from edgefleet_shared.processing import MAX_PIXELS, MAX_SIDE, Processing

MAX_STEPS = 16
MAX_CANDIDATES = 8192
"""Boxes that are compared with one another: their number squared is what it costs."""

Given = dict[str, TensorSpec]
"""Tensors between two steps of `post`, by name."""

_REALS = {"FP16", "FP32", "FP64"}
_TEXTS = {"BYTES", "BOOL"}


class Signature(NamedTuple):
    """Tensors by order, as the protocol's metadata names them."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class _Image(NamedTuple):
    """What the steps of `pre` have made so far; `axes` is HWC, CHW or F, or with N before it."""

    datatype: str
    channels: int
    height: int = -1
    width: int = -1
    axes: str = "HWC"

    def shape(self) -> list[int]:
        flat = -1 if self.height < 0 else self.height * self.width * self.channels
        sizes = {"N": 1, "H": self.height, "W": self.width, "C": self.channels, "F": flat}
        return [sizes[axis] for axis in self.axes]


def check_processing(variant: Variant) -> None:
    """Check that a variant's steps chain, fit its tensors and find their labels.

    Raises:
        InvalidInputError: With the first step that does not fit (code `manifest_processing`).
    """
    processing = variant.processing
    if processing is None:
        return
    outer(processing, variant.inputs, variant.outputs)
    if processing.labelled and len([e for e in variant.files if e.role == "labels"]) != 1:
        raise _bad("a step names labels, and the variant has not one file of that role")


def outer(
    processing: Processing, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Signature:
    """Return what an application sends and gets.

    Args:
        processing: The steps.
        inputs: What the model takes.
        outputs: What it gives.

    Raises:
        InvalidInputError: The steps do not chain (code `manifest_processing`).
    """
    if not processing.pre and not processing.post:
        raise _bad("it has no step; leave it out")
    if max(len(processing.pre), len(processing.post)) > MAX_STEPS:
        raise _bad(f"it has more than {MAX_STEPS} steps in a row")
    taken = list(inputs)
    if processing.pre:
        index = _place(processing.input, inputs, "input")
        if any(t.name == processing.image for t in inputs if t is not inputs[index]):
            raise _bad(f"{processing.image!r} names another input already")
        taken[index] = _image_input(processing, inputs[index])
    given = {tensor.name: tensor for tensor in outputs}
    for step in processing.post:
        given = _after(step, given)
    return Signature(taken, list(given.values()))


def model_input(processing: Processing, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """Return the model's input that `pre` makes.

    Raises:
        InvalidInputError: It is not there, or not named where there are several.
    """
    return inputs[_place(processing.input, inputs, "input")]


def check_labels(processing: Processing, outputs: Sequence[TensorSpec], count: int) -> None:
    """Check that every class has a label, where the model says how many classes it has.

    Args:
        processing: Steps that chain.
        outputs: What the model gives.
        count: Labels in the package's file.

    Raises:
        InvalidInputError: There are fewer labels than classes (code `manifest_processing`).
    """
    given = {tensor.name: tensor for tensor in outputs}
    for step in processing.post:
        if getattr(step, "labels", "") and (classes := _classes(step, given)) > count:
            raise _bad(f"the package has labels for {count} classes, and the model {classes}")
        given = _after(step, given)


def _classes(step: steps.Post, given: Given) -> int:
    """Return how many classes a step tells apart, -1 if nobody knows."""
    values = list(given.values())
    if not isinstance(step, steps.NonMaxSuppression):
        return _one(step, given).shape[-1]
    name = step.scores or values[_place(step.boxes, values, "non_max_suppression")].name
    width = given[name].shape[2 if step.order == "rows" else 1]
    return width if step.scores or width == -1 else width - 4 - step.objectness


# ----------------------------------------------------------------------------------- before


def _image_input(processing: Processing, wanted: TensorSpec) -> TensorSpec:
    """Return the outer input, having walked through `pre` to the model's input."""
    first = processing.pre[0]
    if not processing.image or len(processing.image) > 64:
        raise _bad("`image` needs 1 to 64 characters")
    if not isinstance(first, steps.DecodeImage | steps.Frame):
        raise _bad("`pre` begins with decode_image or frame")
    channels = 1 if first.channels == "GRAY" else 3
    if isinstance(first, steps.DecodeImage):
        if not 1 <= first.max_pixels <= MAX_PIXELS:
            raise _bad(f"decode_image: max_pixels must be 1 to {MAX_PIXELS}")
        given = TensorSpec(processing.image, "BYTES", [1])
    else:
        given = TensorSpec(processing.image, "UINT8", [-1, -1, channels])
    image = _Image("UINT8", channels)
    for step in processing.pre[1:]:
        image = _next_image(step, image)
    shape = image.shape()
    fits = len(shape) == len(wanted.shape) and all(
        want in {-1, got} for got, want in zip(shape, wanted.shape, strict=True)
    )
    if image.datatype != wanted.datatype or not fits:
        raise _bad(
            f"`pre` makes {image.datatype} {shape}, and the model's input {wanted.name!r} is "
            f"{wanted.datatype} {wanted.shape}"
        )
    return given


def _next_image(step: steps.Pre, image: _Image) -> _Image:
    match step:
        case steps.Resize():
            _check_resize(step, image)
            return image._replace(height=step.height, width=step.width)
        case steps.Normalise():
            _check_normalise(step, image)
            return image._replace(datatype="FP32")
        case steps.Layout():
            if image.axes != "HWC":
                raise _bad("layout stands twice")
            axes = "F" if step.order == "FLAT" else step.order
            return image._replace(axes=("N" if step.batch else "") + axes)
        case steps.Cast():
            return image._replace(datatype=step.datatype)
        case steps.Quantise():
            _check_scale("quantise", step.scale, step.zero_point)
            return image._replace(datatype=step.datatype)
        case _:
            raise _bad("decode_image and frame stand first alone")


def _check_resize(step: steps.Resize, image: _Image) -> None:
    if image.datatype != "UINT8" or image.axes != "HWC":
        raise _bad("resize comes before normalise, layout, cast and quantise")
    if not (1 <= step.width <= MAX_SIDE and 1 <= step.height <= MAX_SIDE):
        raise _bad(f"resize: width and height must be 1 to {MAX_SIDE}")
    if not 0 <= step.fill <= 255:
        raise _bad("resize: fill must be 0 to 255")
    if step.shorter and (
        step.mode != "center_crop" or not max(step.width, step.height) <= step.shorter <= MAX_SIDE
    ):
        raise _bad("resize: shorter is for center_crop, and at least as long as the longer side")


def _check_normalise(step: steps.Normalise, image: _Image) -> None:
    if image.axes != "HWC":
        raise _bad("normalise comes before layout")
    for name, values in (("mean", step.mean), ("std", step.std)):
        if len(values) not in {1, image.channels} or not all(map(isfinite, values)):
            raise _bad(f"normalise: {name} needs one number, or {image.channels}")
    if not isfinite(step.scale) or not all(step.std):
        raise _bad("normalise: scale must be finite, and no std may be 0")


def _check_scale(name: str, scale: float, zero_point: int) -> None:
    if not 0 < scale < float("inf") or not -(2**15) <= zero_point < 2**15:
        raise _bad(f"{name}: scale must be positive, and zero_point within 16 bits")


# ----------------------------------------------------------------------------------- after


def _after(step: steps.Post, given: Given) -> Given:
    """Return the tensors after one step of `post`."""
    return _RULES[type(step)](step, given)


def _one(step: Any, given: Given) -> TensorSpec:
    tensor = list(given.values())[_place(step.input, list(given.values()), _name(step))]
    if tensor.datatype in _TEXTS:
        raise _bad(f"{_name(step)}: {tensor.name!r} is {tensor.datatype}, and must be a number")
    return tensor


def _dequantise(step: steps.Dequantise, given: Given) -> Given:
    _check_scale("dequantise", step.scale, step.zero_point)
    tensor = _one(step, given)
    return {**given, tensor.name: structs.replace(tensor, datatype="FP32")}


def _squash(step: steps.Softmax | steps.Sigmoid, given: Given) -> Given:
    tensor = _one(step, given)
    if tensor.datatype not in _REALS or (isinstance(step, steps.Softmax) and not tensor.shape):
        raise _bad(f"{_name(step)}: {tensor.name!r} is {tensor.datatype} {tensor.shape}")
    return {**given, tensor.name: structs.replace(tensor, datatype="FP32")}


def _argmax(step: steps.Argmax, given: Given) -> Given:
    tensor = _one(step, given)
    if not tensor.shape:
        raise _bad(f"argmax: {tensor.name!r} has no axis")
    made = [TensorSpec(step.classes, "INT64", tensor.shape[:-1])]
    if step.labels:
        made.append(TensorSpec(step.labels, "BYTES", tensor.shape[:-1]))
    return _instead(step, given, {tensor.name}, made)


def _top_k(step: steps.TopK, given: Given) -> Given:
    tensor = _one(step, given)
    last = tensor.shape[-1] if tensor.shape else 0
    if step.k < 1 or (last != -1 and step.k > last):
        raise _bad(f"top_k: k is {step.k}, and {tensor.name!r} is {tensor.shape}")
    # A class axis of unknown size may turn out to be shorter.
    shape = [*tensor.shape[:-1], -1 if last == -1 else step.k]
    made = [
        structs.replace(tensor, name=step.scores, shape=shape),
        TensorSpec(step.classes, "INT64", shape),
    ]
    if step.labels:
        made.append(TensorSpec(step.labels, "BYTES", shape))
    return _instead(step, given, {tensor.name}, made)


def _threshold(step: steps.Threshold, given: Given) -> Given:
    tensor = _one(step, given)
    if not isfinite(step.value):
        raise _bad("threshold: value must be finite")
    names = [tensor.name, *step.also]
    for name in step.also:
        if name not in given or given[name].shape != tensor.shape or names.count(name) > 1:
            raise _bad(f"threshold: {name[:80]!r} is not there with the shape {tensor.shape}")
    return {**given, **{name: structs.replace(given[name], shape=[-1]) for name in names}}


def _suppress(step: steps.NonMaxSuppression, given: Given) -> Given:
    values = list(given.values())
    boxes = values[_place(step.boxes, values, "non_max_suppression")]
    used = {boxes.name}
    _check_suppression(step)
    if len(boxes.shape) != 3 or boxes.shape[0] not in {1, -1} or boxes.datatype not in _REALS:
        raise _bad(f"non_max_suppression: {boxes.name!r} is {boxes.datatype} {boxes.shape}")
    width = boxes.shape[2 if step.order == "rows" else 1]
    if not step.scores:
        if 0 <= width < 5 + step.objectness:
            raise _bad(f"non_max_suppression: no scores beside the boxes in {boxes.shape}")
    else:
        scores = given.get(step.scores)
        if scores is None or len(scores.shape) != 3 or scores.datatype not in _REALS:
            raise _bad(f"non_max_suppression: no scores of three axes in {step.scores[:80]!r}")
        if width not in {4, -1} or step.scores in used or step.objectness:
            raise _bad(f"non_max_suppression: boxes of shape {boxes.shape} beside their scores")
        used.add(scores.name)
    made = [
        TensorSpec(step.boxes_out, "FP32", [-1, 4]),
        TensorSpec(step.scores_out, "FP32", [-1]),
        TensorSpec(step.classes_out, "INT64", [-1]),
    ]
    if step.labels:
        made.append(TensorSpec(step.labels, "BYTES", [-1]))
    return _instead(step, given, used, made)


def _check_suppression(step: steps.NonMaxSuppression) -> None:
    if not 0 <= step.iou_threshold <= 1 or not isfinite(step.score_threshold):
        raise _bad("non_max_suppression: iou_threshold must be 0 to 1, score_threshold finite")
    if not 1 <= step.max_detections <= step.max_candidates <= MAX_CANDIDATES:
        raise _bad(
            f"non_max_suppression: 1 <= max_detections <= max_candidates <= {MAX_CANDIDATES}"
        )


def _instead(step: steps.Post, given: Given, used: set[str], made: list[TensorSpec]) -> Given:
    """Return the tensors with `made` in place of those that were used."""
    rest = {name: tensor for name, tensor in given.items() if name not in used}
    names = [*rest, *(tensor.name for tensor in made)]
    if len(set(names)) != len(names) or "" in names:
        raise _bad(f"{_name(step)}: each of its results needs a name of its own")
    return {**rest, **{tensor.name: tensor for tensor in made}}


def _place(name: str, tensors: Sequence[TensorSpec], what: str) -> int:
    """Return the index of a named tensor, or of the only one."""
    names = [tensor.name for tensor in tensors]
    if name in names:
        return names.index(name)
    if not name and len(names) == 1:
        return 0
    why = f"there is no {name[:80]!r}" if name else "say which tensor it means"
    raise _bad(f"{what}: {why}; there are {', '.join(names)}")


def _name(step: steps.Post) -> str:
    return str(step.__struct_config__.tag)


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The processing does not hold: {why}.",
        code="manifest_processing",
        hint="docs/reference.md lists the steps and their fields.",
    )


_RULES: dict[type, Callable[[Any, Given], Given]] = {
    steps.Dequantise: _dequantise,
    steps.Softmax: _squash,
    steps.Sigmoid: _squash,
    steps.Argmax: _argmax,
    steps.TopK: _top_k,
    steps.Threshold: _threshold,
    steps.NonMaxSuppression: _suppress,
}
