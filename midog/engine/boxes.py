"""Boxes: overlap, one box a figure.

Boxes are float32 (N, 4): x0, y0, x1, y1 in px, with x0 <= x1 and y0 <= y1.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.floating]
Cell = tuple[int, int]


def iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
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


def nms(boxes: Boxes, scores: NDArray[np.floating], iou_threshold: float) -> NDArray[np.int64]:
    """Non-maximum suppression: of boxes that overlap by at least `iou_threshold`, the one with the best score stays.

    Args:
        boxes: float (N, 4).
        scores: float (N,); of equal ones the box further up, then further left, goes first, whatever the input's order.
        iou_threshold: in (0, 1].

    Returns:
        int64 (K,), indices of the boxes that stay, best first.

    Raises:
        ValueError: `iou_threshold` is out of range; a coordinate is NaN or infinite.
    """
    _check_iou_threshold(iou_threshold)
    boxes = np.asarray(boxes, np.float64)
    return _best_of_each(_best_first(boxes, scores), boxes, boxes, lambda a, b: _overlap(a, b) >= iou_threshold)


def merge_near(boxes: Boxes, scores: NDArray[np.floating], distance: float) -> NDArray[np.int64]:
    """As `nms`, for boxes whose centres are at most `distance` px apart, whatever their overlap."""
    boxes = np.asarray(boxes, np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = 0.51 * distance  # more than half, so that rounding separates no neighbours
    extents = np.concatenate([centres - half, centres + half], axis=1)
    return _best_of_each(_best_first(boxes, scores), centres, extents, lambda a, b: math.dist(a, b) <= distance)


def weighted_box_fusion(
    found: Sequence[tuple[Boxes, NDArray[np.floating]]], iou_threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One box and one score for what several detectors or views found (Solovyev et al., arXiv 1910.13302).

    Every box, best first, joins the cluster whose fused box it overlaps most, if by at least `iou_threshold`, or else
    starts a cluster. The fused box is the mean of the cluster's boxes, weighted by their scores. Its score is the mean
    over all lists of the best score that each has in the cluster, 0 where it has none. It is the paper's but for a list
    with several boxes there, whose weaker ones would lower the mean: they say nothing against the best one.

    Args:
        found: for each detector or view its boxes, float (K, 4), and scores, float (K,) in [0, 1].
        iou_threshold: in (0, 1].

    Returns:
        boxes float32 (M, 4) and scores float32 (M,), best first, ties as in `nms`; neither the order of the lists nor
        that of their boxes matters.

    Raises:
        ValueError: `iou_threshold` is out of range; a coordinate is NaN or infinite.
    """
    _check_iou_threshold(iou_threshold)
    boxes = np.concatenate([each for each, _ in found]).astype(np.float64)
    scores = np.concatenate([each for _, each in found]).astype(np.float64)
    lists = np.repeat(np.arange(len(found)), [len(each) for each, _ in found])
    grid = _Grid(boxes)
    clusters: list[_Cluster] = []
    order = _best_first(boxes, scores)
    for box, score, source in zip(*(each[order].tolist() for each in (boxes, scores, lists)), strict=True):
        near = set(grid.near(grid.cells(box)))
        # Of clusters that it overlaps equally, the one that began first.
        overlap, number = max(((_overlap(box, clusters[each].box), -each) for each in near), default=(0.0, 0))
        if overlap >= iou_threshold:
            number = -number
            grid.leave(number, grid.cells(clusters[number].box))
        else:
            number = len(clusters)
            clusters.append(_Cluster(box))
        clusters[number].add(box, score, source)
        grid.enter(number, grid.cells(clusters[number].box))
    fused = np.array([each.box for each in clusters], np.float32).reshape(-1, 4)
    sure = np.array([sum(each.best.values()) / len(found) for each in clusters], np.float32)
    order = _best_first(fused, sure)
    return fused[order], sure[order]


class _Cluster:
    """Boxes of one figure, added best first: each list's best score, and their mean box, weighted by score."""

    def __init__(self, box: list[float]) -> None:
        self.box, self.score, self.weighted = box, 0.0, [0.0] * 4
        self.best: dict[int, float] = {}

    def add(self, box: list[float], score: float, source: int) -> None:
        self.best.setdefault(source, score)
        self.score += score
        self.weighted = [total + score * each for total, each in zip(self.weighted, box, strict=True)]
        if self.score:  # boxes with scores of 0 weigh nothing: the first one stays
            self.box = [total / self.score for total in self.weighted]


def _check_iou_threshold(iou_threshold: float) -> None:
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold in (0, 1] expected, got {iou_threshold}")


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """As `iou`, of two boxes in Python's own numbers, which one by one are several times faster."""
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common)


def _best_first(boxes: Boxes, scores: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.lexsort((*boxes.T[[3, 2, 0, 1]], -np.asarray(scores)))


class _Grid:
    """Items by place: each stands in every square cell that its extent (a box) meets.

    Extents that meet share a cell. The cells are as large as the mean extent, so an item stands in few of them.

    Args:
        extents: float64 (N, 4), of what is to be entered.

    Raises:
        ValueError: a coordinate is NaN or infinite.
    """

    def __init__(self, extents: Boxes) -> None:
        if not np.isfinite(extents).all():
            raise ValueError("boxes with NaN or infinite coordinates")
        self.side = max(1.0, float((extents[:, 2:] - extents[:, :2]).mean())) if len(extents) else 1.0
        self.items: dict[Cell, list[Any]] = {}

    def cells(self, extent: Sequence[float]) -> list[Cell]:
        """The cells that an extent meets."""
        left, top, right, bottom = (math.floor(each / self.side) for each in extent)
        return [*itertools.product(range(left, right + 1), range(top, bottom + 1))]

    def near(self, cells: Iterable[Cell]) -> Iterable[Any]:
        """What stands in some cells, one after the other, the same again where it stands in two of them."""
        return (item for cell in cells for item in self.items.get(cell, ()))

    def enter(self, item: Any, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.items.setdefault(cell, []).append(item)

    def leave(self, item: Any, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.items[cell].remove(item)


def _best_of_each(
    order: NDArray[np.int64],
    rows: NDArray[np.floating],
    extents: Boxes,
    same: Callable[[Sequence[float], Sequence[float]], bool],
) -> NDArray[np.int64]:
    """Greedy choice: go through the rows in `order` and choose each that is not the `same` as one chosen before.

    Rows can only be the same where their extents (boxes) meet, so each is compared with those chosen in its own cells
    of a grid. Chosen ones are few in a cell however many candidates lie there, so the time is about linear in the
    number of rows.
    """
    grid, chosen = _Grid(extents), []
    rows, extents = rows.tolist(), extents.tolist()
    for number in order.tolist():
        row, cells = rows[number], grid.cells(extents[number])
        if not any(same(row, other) for other in grid.near(cells)):
            chosen.append(number)
            grid.enter(row, cells)
    return np.array(chosen, np.int64)
