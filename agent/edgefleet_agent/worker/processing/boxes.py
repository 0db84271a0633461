"""Non-maximum suppression: from many boxes to the few that count, in the original's pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgefleet_agent.worker.processing.images import Geometry
from edgefleet_shared.processing import NonMaxSuppression

_ORDER = {"xyxy": [0, 1, 2, 3], "yxyx": [1, 0, 3, 2]}


def suppress(
    step: NonMaxSuppression, found: Mapping[str, np.ndarray], geometry: Geometry | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes FP32 [n, 4], scores FP32 [n] and classes INT64 [n], best first.

    Args:
        step: What is declared.
        found: The tensors it names.
        geometry: Of the image; without one, coordinates stay as the model gives them.

    Raises:
        RuntimeError: The tensors have shapes that cannot be boxes and scores.
    """
    boxes, scores = _split(step, found)
    best = scores.max(axis=1)
    likely = np.flatnonzero(best >= step.score_threshold)
    likely = likely[np.isfinite(boxes[likely]).all(axis=1)]
    order = likely[np.argsort(-best[likely], kind="stable")][: step.max_candidates]
    classes = scores[order].argmax(axis=1)  # of the few alone
    corners = _corners(boxes[order].astype(np.float64), step.format)
    if geometry is not None:
        size = (geometry.seen_width, geometry.seen_height) if step.normalised else (1, 1)
        corners = _back(corners * [*size, *size], geometry)
    kept = _pick(corners, classes, step)
    if geometry is not None:
        limits = [geometry.width, geometry.height] * 2
        corners = np.clip(corners, 0, limits)
    return (
        corners[kept].astype(np.float32),
        best[order[kept]].astype(np.float32),
        classes[kept].astype(np.int64),
    )


def _split(
    step: NonMaxSuppression, found: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [N, 4] and scores [N, classes]."""
    table = _rows(found[step.boxes or next(iter(found))], step)
    if step.scores:
        scores = _rows(found[step.scores], step)
    else:
        table, scores = table[:, :4], table[:, 4:]
        if step.objectness:
            scores = scores[:, 1:] * scores[:, :1]
    if table.shape[1] != 4 or not scores.shape[1] or len(scores) != len(table):
        raise RuntimeError(
            f"{list(table.shape)} cannot be boxes with scores of shape {list(scores.shape)}."
        )
    return table, scores


def _rows(array: np.ndarray, step: NonMaxSuppression) -> np.ndarray:
    if array.ndim != 3 or len(array) != 1:
        raise RuntimeError(f"Boxes of one image are asked for; the shape is {list(array.shape)}.")
    table: np.ndarray = array[0]
    return table.T if step.order == "columns" else table


def _corners(boxes: np.ndarray, form: str) -> np.ndarray:
    """Return left, top, right, bottom."""
    if form != "cxcywh":
        ordered: np.ndarray = np.take(boxes, _ORDER[form], axis=1)
        return ordered
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _back(corners: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return the corners in pixels of the original image."""
    moved = corners - [geometry.left, geometry.top] * 2
    scaled: np.ndarray = moved * ([geometry.scale_x, geometry.scale_y] * 2)
    return scaled


def _pick(corners: np.ndarray, classes: np.ndarray, step: NonMaxSuppression) -> list[int]:
    """Return which boxes are kept; they come best first."""
    sizes = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    areas = sizes[:, 0] * sizes[:, 1]
    left = np.arange(len(corners))
    kept: list[int] = []
    while left.size and len(kept) < step.max_detections:
        best, rest = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(corners[rest, :2], corners[best, :2])
        high = np.minimum(corners[rest, 2:], corners[best, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        union = areas[rest] + areas[best] - shared
        # Not divided: a box without an area overlaps nothing.
        overlaps = shared > step.iou_threshold * union
        if not step.class_agnostic:
            overlaps &= classes[rest] == classes[best]
        left = rest[~overlaps]
    return kept
