"""What stands between an application and a model: steps that a manifest declares, pure data.

`pre` makes the model's input from an image, `post` makes answers from its outputs: a device knows
these steps and no others, so that a package brings no code. `processing_rules` says how they chain.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Colours = Literal["RGB", "BGR", "GRAY"]
Number = Literal[
    "UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]
"""Element types that a step may make, by their names in the Open Inference Protocol v2."""

MAX_SIDE = 16384
"""Pixels of the longest side that an image may have, before or after a resize."""

MAX_PIXELS = 2**26
"""Pixels that a package may ever allow an image to have."""


class Step(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="step"
):
    """A step; the key `step` names which."""


class DecodeImage(Step, tag="decode_image", frozen=True):
    """JPEG, PNG or WebP to UINT8 [height, width, channels]; first, if it is there.

    An image of more than `max_pixels` is refused before a pixel is decoded. Transparency and the
    orientation that a camera notes are ignored; `BGR` is what OpenCV reads.
    """

    channels: Colours = "RGB"
    max_pixels: int = 2**24


class Frame(Step, tag="frame", frozen=True):
    """The input is a UINT8 tensor [height, width, channels] of any size; first, instead of a file.

    `channels` says what the application sends; nothing is converted.
    """

    channels: Colours = "RGB"


class Resize(Step, tag="resize", frozen=True):
    """To `height` x `width`, in Pillow's arithmetic: down-scaling averages over what it covers.

    `stretch` changes the proportions. `letterbox` keeps them and fills what is left with the grey
    `fill`, on both sides or, with `pad` = `end`, at right and bottom. `center_crop` scales so that
    the shorter side has `shorter` pixels (0: as few as fill the size) and cuts out the middle.
    """

    width: int
    height: int
    mode: Literal["stretch", "letterbox", "center_crop"] = "stretch"
    filter: Literal["bilinear", "nearest", "bicubic"] = "bilinear"
    fill: int = 0
    pad: Literal["both", "end"] = "both"
    shorter: int = 0


class Normalise(Step, tag="normalise", frozen=True):
    """To FP32: (x * scale - mean) / std; mean and std are one number, or one a channel."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Layout(Step, tag="layout", frozen=True):
    """Order of the axes, and whether a batch axis of one comes first.

    `FLAT` is HWC in one row, for models without a notion of an image.
    """

    order: Literal["CHW", "HWC", "FLAT"] = "CHW"
    batch: bool = True


class Cast(Step, tag="cast", frozen=True):
    """To another element type; what lies beyond an integer's range becomes its end."""

    datatype: Number


class Quantise(Step, tag="quantise", frozen=True):
    """To integers: round(x / scale) + zero_point, half to even, at the range's end beyond it."""

    scale: float
    zero_point: int = 0
    datatype: Literal["UINT8", "INT8", "INT16"] = "INT8"


class Dequantise(Step, tag="dequantise", frozen=True):
    """To FP32: (x - zero_point) * scale. `input` is empty where there is only one."""

    scale: float
    zero_point: int = 0
    input: str = ""


class Softmax(Step, tag="softmax", frozen=True):
    """Exp(x) / sum(exp(x)) over the last axis, as FP32."""

    input: str = ""


class Sigmoid(Step, tag="sigmoid", frozen=True):
    """1 / (1 + exp(-x)), as FP32."""

    input: str = ""


class Argmax(Step, tag="argmax", frozen=True):
    """The largest element's place on the last axis: `classes` INT64 and, if named, `labels`."""

    input: str = ""
    classes: str = "classes"
    labels: str = ""


class TopK(Step, tag="top_k", frozen=True):
    """The `k` largest on the last axis, largest first: `scores`, `classes` and, if named, `labels`.

    Of equal elements the one with the lower class comes first.
    """

    k: int
    input: str = ""
    scores: str = "scores"
    classes: str = "classes"
    labels: str = ""


class Threshold(Step, tag="threshold", frozen=True):
    """Keep what is at least `value` in `input`, and what stands in the same places of `also`."""

    value: float
    input: str = "scores"
    also: list[str] = []


class NonMaxSuppression(Step, tag="non_max_suppression", frozen=True):
    """From many boxes of one image to the few that count, best first.

    `boxes` is the tensor [1, N, 4] and `scores` [1, N, classes]. With `scores` empty one tensor
    holds both, [1, N, 4 + classes] or, with `order` = `columns`, [1, 4 + classes, N]; with
    `objectness` a fifth number multiplies the scores. `format` says what the four numbers are;
    `normalised` that they are shares of the model's input instead of its pixels.

    A box keeps the class with its highest score, and counts if that is at least `score_threshold`.
    Boxes are taken by falling score; those that overlap a taken one of the same class (of any, with
    `class_agnostic`) by more than `iou_threshold` are dropped. At most `max_candidates` boxes are
    looked at and `max_detections` answered.

    It gives `boxes_out` FP32 [n, 4] (left, top, right, bottom in pixels of the image that came in),
    `scores_out` FP32 [n], `classes_out` INT64 [n] and, if `labels` is named, BYTES [n].
    """

    boxes: str = ""
    scores: str = ""
    order: Literal["rows", "columns"] = "rows"
    objectness: bool = False
    format: Literal["xyxy", "cxcywh", "yxyx"] = "xyxy"
    normalised: bool = False
    score_threshold: float = 0.25
    iou_threshold: float = 0.45
    class_agnostic: bool = False
    max_candidates: int = 2048
    max_detections: int = 100
    boxes_out: str = "boxes"
    scores_out: str = "scores"
    classes_out: str = "classes"
    labels: str = ""


Pre = DecodeImage | Frame | Resize | Normalise | Layout | Cast | Quantise
Post = Dequantise | Softmax | Sigmoid | Argmax | TopK | Threshold | NonMaxSuppression


class Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Steps before and after a model.

    `image` is the name of what an application sends; it takes the place of the model's input
    `input` (empty where there is only one). A step of `post` consumes the tensor it names and puts
    its results in its place; what is left at the end is the answer.
    """

    pre: list[Pre] = []
    post: list[Post] = []
    image: str = "image"
    input: str = ""

    @property
    def labelled(self) -> bool:
        """Whether a step needs the package's labels."""
        return any(getattr(step, "labels", "") for step in self.post)
