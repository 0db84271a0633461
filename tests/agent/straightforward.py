"""The same steps once more, slow and plain, to compare the worker's with: loops, no cleverness."""

from __future__ import annotations

import math

import numpy as np


def triangle(x: float) -> float:
    """Bilinear's filter, support 1."""
    return max(0.0, 1.0 - abs(x))


def cubic(x: float) -> float:
    """Bicubic's filter with a = -0.5, support 2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


FILTERS = {"bilinear": (triangle, 1.0), "bicubic": (cubic, 2.0)}


def weights(size: int, wanted: int, kind: str) -> list[tuple[int, list[int]]]:
    """For each wanted pixel: its first source pixel and integer weights with 22 bits after the dot.

    The filter is stretched when an image shrinks, so that each pixel averages over what it covers.
    """
    shape, support = FILTERS[kind]
    scale = size / wanted
    stretch = max(scale, 1.0)
    found = []
    for out in range(wanted):
        center = (out + 0.5) * scale
        low = max(int(center - support * stretch + 0.5), 0)
        high = min(int(center + support * stretch + 0.5), size)
        raw = [shape((i + low - center + 0.5) * (1 / stretch)) for i in range(high - low)]
        total = sum(raw)
        found.append((low, [_fixed(w / total) for w in raw]))
    return found


def _fixed(value: float) -> int:
    return math.trunc(value * 2**22 + (0.5 if value >= 0 else -0.5))


def resize(image: np.ndarray, width: int, height: int, kind: str) -> np.ndarray:
    """UINT8 [h, w, channels] to another size: first all rows, then all columns, 8 bits between."""
    if kind == "nearest":
        rows = [int((y + 0.5) * image.shape[0] / height) for y in range(height)]
        columns = [int((x + 0.5) * image.shape[1] / width) for x in range(width)]
        return image[rows][:, columns]
    if width != image.shape[1]:
        image = _along(image, weights(image.shape[1], width, kind))
    if height != image.shape[0]:
        turned = _along(image.transpose(1, 0, 2), weights(image.shape[0], height, kind))
        image = turned.transpose(1, 0, 2)
    return image


def _along(image: np.ndarray, table: list[tuple[int, list[int]]]) -> np.ndarray:
    made = np.empty((image.shape[0], len(table), image.shape[2]), np.uint8)
    for out, (low, factors) in enumerate(table):
        total = np.full((image.shape[0], image.shape[2]), 1 << 21, np.int64)
        for index, factor in enumerate(factors):
            total += image[:, low + index].astype(np.int64) * factor
        made[:, out] = np.clip(total >> 22, 0, 255)
    return made


def iou(a, b) -> float:
    """Intersection over union of two boxes left, top, right, bottom."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def suppress(boxes, scores, limit: float, overlap: float, most: int, *, agnostic: bool):
    """Indices of boxes that stay: best first, none overlapping a better one of its class."""
    classes = [int(np.argmax(row)) for row in scores]
    best = [float(row[c]) for row, c in zip(scores, classes, strict=True)]
    order = sorted((i for i in range(len(best)) if best[i] >= limit), key=lambda i: -best[i])
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if agnostic or classes[j] == classes[i]]
        if all(iou(boxes[i], boxes[j]) <= overlap for j in rivals):
            kept.append(i)
    return kept[:most], classes, best
