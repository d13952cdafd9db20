"""Boxes: overlap, non-maximum suppression, merging across tiles, matching to ground truth.

Boxes are float32 (N, 4): x0, y0, x1, y1.
"""

from collections import defaultdict

import numpy as np


def iou(first, second):
    """Intersection over union of all pairs: (N, 4), (M, 4) -> float64 (N, M); 0 where both boxes are empty."""
    first, second = first[:, None].astype(float), second[None].astype(float)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(0).prod(-1)
    union = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def nms(boxes, scores, least_iou):
    """Non-maximum suppression: of boxes that overlap by at least `least_iou` > 0, the one with the best score stays.

    Args:
        boxes: (N, 4).
        scores: (N,); of equal ones the box further up, then further left, goes first, whatever the input's order.
        least_iou: in (0, 1].

    Returns:
        int (K,), indices of the boxes that stay, best first.
    """

    def same(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return False
        common = width * height
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
        return common >= least_iou * union

    # Centres of overlapping boxes are never further apart than the longest side.
    longest = float((boxes[:, 2:] - boxes[:, :2]).max()) if len(boxes) else 0.0
    return _best_of_each(boxes, scores, same, longest)


def merge_near(boxes, scores, distance):
    """As `nms`, for boxes whose centres are at most `distance` apart."""

    def same(a, b):
        across, down = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
        return across * across + down * down <= distance * distance

    return _best_of_each(boxes, scores, same, distance)


def _best_of_each(boxes, scores, same, reach):
    """Greedy choice, best first; a box is compared with the chosen ones in its cell and the eight around it.

    Cells are as wide as the reach, and what is chosen is never near another, so the time is linear in the number of
    boxes (but for the sort).
    """
    order = np.lexsort((*boxes.T[[3, 2, 0, 1]], -scores))
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / max(reach, 1e-6)).astype(np.int64).tolist()
    corners = boxes.astype(float).tolist()
    chosen, by_cell = [], defaultdict(list)
    for number in order.tolist():
        column, row = cells[number]
        corner = corners[number]
        if not any(
            same(other, corner)
            for neighbour in ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
            for other in by_cell.get(neighbour, ())
        ):
            chosen.append(number)
            by_cell[column, row].append(corner)
    return np.array(chosen, np.int64)


def match(truths, found, radius):
    """One-to-one greedy matching, as the organisers do it.

    Each truth, in order, takes its nearest free point with distance <= radius
    (`evalutils.scorers.score_detection`). Not optimal: the order of truths matters.

    Args:
        truths: float (N, 2).
        found: float (M, 2), same unit.
        radius: same unit.

    Returns:
        int (N,): index into `found`, or -1.
    """
    truths, found = np.asarray(truths, float).reshape(-1, 2), np.asarray(found, float).reshape(-1, 2)
    taken = np.full(len(truths), -1)
    free = np.ones(len(found), bool)
    for number, truth in enumerate(truths):
        near = np.flatnonzero(free & (np.abs(found - truth).max(1, initial=0) <= radius))
        distances = np.linalg.norm(found[near] - truth, axis=1)
        if len(near) and distances.min() <= radius:
            taken[number] = near[distances.argmin()]
            free[taken[number]] = False
    return taken
