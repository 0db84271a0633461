"""The steps of `pre`: from what an application sends to the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgefleet_agent.worker import tensors
from edgefleet_agent.worker.processing import images
from edgefleet_agent.worker.processing.images import Geometry
from edgefleet_shared import processing as steps

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare(given: np.ndarray, pre: Sequence[steps.Pre]) -> tuple[np.ndarray, Geometry]:
    """Return the model's input and where its points lie in the image.

    Args:
        given: BYTES [1] for `decode_image`, UINT8 [height, width, channels] for `frame`.
        pre: The steps, as `processing_rules` has passed them.

    Raises:
        InvalidInputError: The image cannot be used.
    """
    first = pre[0]
    if isinstance(first, steps.DecodeImage):
        image = images.decode(given[0], first)
    else:
        assert isinstance(first, steps.Frame)
        image = images.take(given, first)
    geometry = Geometry(*image.size, *image.size)
    rest = list(pre[1:])
    for step in pre[1:]:
        if not isinstance(step, steps.Resize):
            break
        image, geometry = images.resize(image, step, geometry)
        rest = rest[1:]
    # What an application sends as a frame has the order that it has; a file has none.
    array = _pixels(image, flip=isinstance(first, steps.DecodeImage) and first.channels == "BGR")
    for step in rest:
        array = _apply(step, array)
    return array, geometry


def _pixels(image: Image, *, flip: bool) -> np.ndarray:
    """Return UINT8 [height, width, channels]."""
    array: np.ndarray = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    return array[:, :, ::-1] if flip else array


def _apply(step: steps.Pre, array: np.ndarray) -> np.ndarray:
    match step:
        case steps.Normalise():
            found = array.astype(np.float32)
            found *= np.float32(step.scale)
            found -= np.array(step.mean, np.float32)
            found /= np.array(step.std, np.float32)
            return found
        case steps.Layout():
            ordered = array.transpose(2, 0, 1) if step.order == "CHW" else array
            ordered = ordered.ravel() if step.order == "FLAT" else ordered
            return np.ascontiguousarray(ordered[None] if step.batch else ordered)
        case steps.Cast():
            return cast(array, step.datatype)
        case steps.Quantise():
            scaled = np.rint(array.astype(np.float32) / np.float32(step.scale))
            return cast(scaled + np.float32(step.zero_point), step.datatype)
        case _:
            raise ValueError(f"{step} stands in the wrong place")


def cast(array: np.ndarray, datatype: str) -> np.ndarray:
    """Return the array with another element type; integers end at their range."""
    dtype = tensors.DTYPES[datatype]
    if dtype.kind not in "iu":
        return array.astype(dtype)
    wide = array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int64)
    ends = np.iinfo(dtype)
    return np.trunc(np.clip(wide, ends.min, ends.max)).astype(dtype)
