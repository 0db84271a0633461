"""The steps of `post`: from the model's outputs to what an application gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgefleet_agent.worker.processing import boxes
from edgefleet_agent.worker.processing.images import Geometry
from edgefleet_shared import processing as steps

Tensors = dict[str, np.ndarray]


class Labels:
    """Names of classes, line by line as the package's file has them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array([*names], object)

    def __len__(self) -> int:
        return len(self._names)

    def of(self, classes: np.ndarray) -> np.ndarray:
        """Return the label of each class.

        Raises:
            RuntimeError: The package has fewer labels than the model has classes.
        """
        if classes.size and int(classes.max()) >= len(self):
            raise RuntimeError(
                f"The model answers class {int(classes.max())}; the package has labels for "
                f"{len(self)} classes."
            )
        found: np.ndarray = np.empty(classes.shape, object)
        found[...] = self._names[classes]
        return found


def finish(
    found: Tensors, post: Sequence[steps.Post], labels: Labels, geometry: Geometry | None
) -> Tensors:
    """Return what is left after every step.

    Raises:
        RuntimeError: The model's outputs do not suit a step.
    """
    for step in post:
        found = _STEPS[type(step)](step, found, labels, geometry)
    return found


def _name(step: Any, found: Tensors) -> str:
    return step.input or next(iter(found))


def _dequantise(step: steps.Dequantise, found: Tensors, *_: object) -> Tensors:
    name = _name(step, found)
    shifted = found[name].astype(np.float32) - np.float32(step.zero_point)
    return {**found, name: shifted * np.float32(step.scale)}


def _softmax(step: steps.Softmax, found: Tensors, *_: object) -> Tensors:
    name = _name(step, found)
    x = found[name].astype(np.float32)
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return {**found, name: raised / raised.sum(axis=-1, keepdims=True)}


def _sigmoid(step: steps.Sigmoid, found: Tensors, *_: object) -> Tensors:
    name = _name(step, found)
    half = found[name].astype(np.float32) * np.float32(0.5)
    return {**found, name: (np.tanh(half) + np.float32(1)) * np.float32(0.5)}


def _argmax(step: steps.Argmax, found: Tensors, labels: Labels, *_: object) -> Tensors:
    name = _name(step, found)
    classes: np.ndarray = np.asarray(found[name].argmax(axis=-1), np.int64)
    made = {step.classes: classes}
    if step.labels:
        made[step.labels] = labels.of(classes)
    return _instead(found, {name}, made)


def _top_k(step: steps.TopK, found: Tensors, labels: Labels, *_: object) -> Tensors:
    name = _name(step, found)
    x = found[name]
    # Sorted backwards and turned round, so that among equals the lower class comes first.
    order = np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1][..., : step.k]
    classes = (x.shape[-1] - 1 - order).astype(np.int64)
    made = {step.scores: np.take_along_axis(x, classes, axis=-1), step.classes: classes}
    if step.labels:
        made[step.labels] = labels.of(classes)
    return _instead(found, {name}, made)


def _threshold(step: steps.Threshold, found: Tensors, *_: object) -> Tensors:
    name = _name(step, found)
    keep = (found[name] >= step.value).ravel()
    kept = {}
    for one in (name, *step.also):
        if found[one].size != keep.size:
            raise RuntimeError(f"{one!r} has not the shape of {name!r}.")
        kept[one] = found[one].ravel()[keep]
    return {**found, **kept}


def _suppress(
    step: steps.NonMaxSuppression, found: Tensors, labels: Labels, geometry: Geometry | None
) -> Tensors:
    used = {step.boxes or next(iter(found))} | ({step.scores} - {""})
    corners, scores, classes = boxes.suppress(step, found, geometry)
    made = {step.boxes_out: corners, step.scores_out: scores, step.classes_out: classes}
    if step.labels:
        made[step.labels] = labels.of(classes)
    return _instead(found, used, made)


def _instead(found: Tensors, used: set[str], made: Tensors) -> Tensors:
    return {**{name: array for name, array in found.items() if name not in used}, **made}


_STEPS: dict[type, Callable[..., Tensors]] = {
    steps.Dequantise: _dequantise,
    steps.Softmax: _softmax,
    steps.Sigmoid: _sigmoid,
    steps.Argmax: _argmax,
    steps.TopK: _top_k,
    steps.Threshold: _threshold,
    steps.NonMaxSuppression: _suppress,
}
