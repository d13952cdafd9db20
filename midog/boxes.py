"""Boxes and points: overlap, one box a figure, matching to ground truth.

Boxes are float32 (N, 4): x0, y0, x1, y1 in px, with x0 <= x1 and y0 <= y1.
"""

import itertools
import math

import numpy as np


def iou(first, second):
    """Intersection over union of every box of `first` with every box of `second`.

    Args:
        first, second: float (N, 4) and (M, 4).

    Returns:
        float64 (N, M), in [0, 1]; 0 where both boxes are empty.
    """
    first, second = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def nms(boxes, scores, least_iou):
    """Non-maximum suppression: of boxes that overlap by at least `least_iou`, the one with the best score stays.

    Args:
        boxes: float (N, 4).
        scores: float (N,); of equal ones the box further up, then further left, goes first, whatever the input's order.
        least_iou: in (0, 1].

    Returns:
        int64 (K,), indices of the boxes that stay, best first.

    Raises:
        ValueError: `least_iou` is out of range; a coordinate is NaN or infinite.
    """
    if not 0 < least_iou <= 1:
        raise ValueError(f"least_iou in (0, 1] expected, got {least_iou}")

    def same(a, b):
        ax0, ay0, ax1, ay1 = a
        bx0, by0, bx1, by1 = b
        width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
        if width <= 0 or height <= 0:
            return False
        common = width * height
        return common / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common) >= least_iou

    boxes = np.asarray(boxes, np.float64)
    return _best_of_each(_best_first(boxes, scores), boxes, boxes, same)


def merge_near(boxes, scores, distance):
    """As `nms`, for boxes whose centres are at most `distance` px apart, whatever their overlap."""
    boxes = np.asarray(boxes, np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = 0.51 * distance  # more than half, so that rounding separates no neighbours
    extents = np.concatenate([centres - half, centres + half], axis=1)
    return _best_of_each(_best_first(boxes, scores), centres, extents, lambda a, b: math.dist(a, b) <= distance)


def _best_first(boxes, scores):
    return np.lexsort((*boxes.T[[3, 2, 0, 1]], -np.asarray(scores)))


def _best_of_each(order, rows, extents, same):
    """Greedy choice: go through the rows in `order` and choose each that is not the `same` as one chosen before.

    Rows can only be the same where their extents (boxes) meet. A chosen row is entered in every cell of a grid that
    its extent meets, and a row is compared with those in its own cells. Chosen ones are few in a cell however many
    candidates lie there, so the time is about linear in the number of rows.
    """
    if not np.isfinite(extents).all():
        raise ValueError("boxes with NaN or infinite coordinates")
    if len(rows) == 0:
        return np.zeros(0, np.int64)
    side = max(1.0, (extents[:, 2:] - extents[:, :2]).mean())
    # Lists, because one by one Python's own numbers are several times faster.
    rows, cells = rows.tolist(), np.floor(extents / side).astype(np.int64).tolist()
    chosen, by_cell = [], {}
    for number in order.tolist():
        row = rows[number]
        left, top, right, bottom = cells[number]
        met = [*itertools.product(range(left, right + 1), range(top, bottom + 1))]
        if not any(same(row, other) for cell in met for other in by_cell.get(cell, ())):
            chosen.append(number)
            for cell in met:
                by_cell.setdefault(cell, []).append(row)
    return np.array(chosen, np.int64)


def match(truths, found, radius):
    """One-to-one greedy matching, as the organisers do it.

    Each truth, in order, takes its nearest free point with distance <= radius (evalutils 0.5.0, `score_detection`).
    Not optimal: the order of truths matters. Of points equally near, the first is taken; there the scorer has no rule.

    Args:
        truths: float (N, 2), in any unit.
        found: float (M, 2), same unit.
        radius: same unit.

    Returns:
        int64 (N,), for each truth an index into `found`, or -1.
    """
    truths, found = np.asarray(truths, np.float64), np.asarray(found, np.float64)
    taken = np.full(len(truths), -1, np.int64)
    if len(found) == 0:
        return taken
    free = np.ones(len(found), bool)
    for number, truth in enumerate(truths):
        squares = np.where(free, ((found - truth) ** 2).sum(axis=1), np.inf)
        nearest = squares.argmin()
        if squares[nearest] <= radius * radius:
            taken[number] = nearest
            free[nearest] = False
    return taken
