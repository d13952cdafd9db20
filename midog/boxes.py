"""Boxes and points: overlap, one box a figure, matching to ground truth.

A box is (x0, y0, x1, y1) in px, x0 <= x1 and y0 <= y1; boxes are float32 (N, 4).
"""

import itertools
import math

import numpy as np


def iou(a, b):
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a, b: float (N, 4) and (M, 4).

    Returns:
        float64 (N, M), in [0, 1]; 0 where both boxes are empty.
    """
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    union = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def nms(boxes, scores, iou):
    """Non-maximum suppression: of boxes that overlap, the one with the highest score stays.

    Args:
        boxes: float (N, 4), finite.
        scores: float (N,); of equal scores the lower index goes first.
        iou: a box goes if it shares at least this, in (0, 1], with one that stays.

    Returns:
        int64 (K,), indices of the boxes that stay, best first.
    """
    return _suppress(boxes, np.argsort(-np.asarray(scores), kind="stable"), iou=iou)


def merge(boxes, scores, iou=0.5, distance=None):
    """One box a figure, of candidates that overlapping tiles found several times.

    As `nms`, but boxes of equal score are taken by their coordinates, so that the result does not depend on the
    order in which tiles were read.

    Args:
        boxes: float (N, 4), finite.
        scores: float (N,).
        iou: boxes that share at least this, in (0, 1], are one figure.
        distance: px; if given, boxes whose centres are no farther apart are one figure, whatever their overlap.

    Returns:
        int64 (K,), indices of the boxes that stay, best first.
    """
    boxes = np.asarray(boxes)
    order = np.lexsort((*boxes.T[::-1], -np.asarray(scores)))
    return _suppress(boxes, order, iou=iou) if distance is None else _suppress(boxes, order, distance=distance)


def _suppress(boxes, order, iou=None, distance=None):
    """Go through the boxes in `order` and keep each that no kept one stands for.

    Kept boxes are entered in every cell of a grid that they touch: only those in a box's own cells can stand for
    it, and since kept boxes hardly overlap, a cell holds few. That makes the time linear in the number of boxes.
    """
    boxes = np.asarray(boxes, np.float64)
    if not np.isfinite(boxes).all():
        raise ValueError("boxes with NaN or infinite coordinates")
    if len(boxes) == 0:
        return np.zeros(0, np.int64)
    if distance is None:
        same, rows, reach = _overlapping(iou), boxes, boxes
    else:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        half = 0.51 * distance  # more than half, so that rounding separates no neighbours
        same, rows, reach = _near(distance), centres, np.concatenate([centres - half, centres + half], axis=1)
    side = max(1.0, (reach[:, 2:] - reach[:, :2]).mean())
    rows, cells = rows.tolist(), np.floor(reach / side).astype(np.int64).tolist()  # lists: plain floats are faster here
    kept, kept_in = [], {}
    for index in order.tolist():
        left, top, right, bottom = cells[index]
        touched = [*itertools.product(range(left, right + 1), range(top, bottom + 1))]
        row = rows[index]
        if not any(same(row, other) for cell in touched for other in kept_in.get(cell, ())):
            kept.append(index)
            for cell in touched:
                kept_in.setdefault(cell, []).append(row)
    return np.array(kept, np.int64)


def _overlapping(least):
    if not 0 < least <= 1:
        raise ValueError(f"iou in (0, 1] expected, got {least}")

    def same(a, b):
        ax0, ay0, ax1, ay1 = a
        bx0, by0, bx1, by1 = b
        width = min(ax1, bx1) - max(ax0, bx0)
        height = min(ay1, by1) - max(ay0, by0)
        if width <= 0 or height <= 0:
            return False
        shared = width * height
        return shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared) >= least

    return same


def _near(distance):
    return lambda a, b: math.dist(a, b) <= distance


def match(truth, found, radius):
    """Match predictions to ground truth one to one, as the organisers' scorer does.

    Greedy: truths in their order, each takes the nearest prediction that is still free (evalutils 0.5.0,
    `score_detection`). Of predictions at the same distance the lower index is taken; there the scorer has no rule.

    Args:
        truth: float (N, 2), points in any unit.
        found: float (M, 2), in the same unit.
        radius: in the same unit; a distance equal to it counts.

    Returns:
        int64 (N,), for each truth the index of its prediction, or -1.
    """
    matched = np.full(len(truth), -1, np.int64)
    if len(found) == 0:
        return matched
    found, free = np.asarray(found, np.float64), np.ones(len(found), bool)
    for index, point in enumerate(np.asarray(truth, np.float64)):
        squares = np.where(free, ((found - point) ** 2).sum(axis=1), np.inf)
        nearest = squares.argmin()
        if squares[nearest] <= radius**2:
            matched[index] = nearest
            free[nearest] = False
    return matched
