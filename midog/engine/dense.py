"""Tiles -> maps -> places: dense detectors, whose members and views are averaged on maps before places are taken.

A dense network is a `midog.engine.network.Network` that gives the logits of a map, (N, 1, H / stride, W / stride), one
cell `stride` px. `MeanMap` and `MapViews` have the same signature; `PlaceDetector` makes a `Detector` of it.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from midog.calibration import sigmoid
from midog.engine.network import Network
from midog.engine.views import VIEWS, dihedral, undone

REACH = 3  # cells on each side of a place that are no higher (of 1 um: half a box of 7 um)


class MeanMap:
    """Networks of one architecture as one: the mean of their logits, cell by cell.

    Args:
        networks: float32 (N, 3, H, W) -> logits (N, 1, h, w).
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    def __call__(self, tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (np.mean([network(tiles)[0] for network in self.networks], axis=0),)


class MapViews:
    """The mean of the maps of dihedral views, each turned back; the views go through one after the other.

    Args:
        network: float32 (N, 3, H, W) -> logits (N, 1, h, w).
        count: of views: 1, 2, 4 or 8.
    """

    def __init__(self, network: Network, count: int) -> None:
        self.network, self.views = network, VIEWS[count]

    def __call__(self, tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (np.mean([undone(self.network(dihedral(tiles, view))[0], view) for view in self.views], axis=0),)


class PlaceDetector:
    """The maxima of a map as a `midog.engine.detector.Detector`: each gets a box of one size.

    Args:
        network: float32 (N, 3, H, W) -> logits (N, 1, H / stride, W / stride).
        score_threshold: the least probability of a place.
        box_px: side of the boxes.
    """

    def __init__(self, network: Network, score_threshold: float, box_px: float) -> None:
        self.network, self.score_threshold, self.box_px = network, score_threshold, box_px

    def __call__(self, tiles: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        (logits,) = self.network(tiles)
        stride = tiles.shape[3] // logits.shape[3]
        found = []
        for score in sigmoid(logits[:, 0]).astype(np.float32):
            rows, columns = np.nonzero((score >= self.score_threshold) & (score == highest_around(score)))
            centres = np.stack([columns, rows], 1) * stride + (stride - 1) / 2  # a pixel's centre is at integers
            boxes = np.concatenate([centres - self.box_px / 2, centres + self.box_px / 2], 1)
            found.append((boxes.astype(np.float32), score[rows, columns]))
        return found


def highest_around(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The highest of the scores, float (h, w), up to `REACH` cells away along both axes: float (h, w)."""
    for axis, side in enumerate(scores.shape):
        padded = np.pad(
            scores, [(REACH, REACH) if each == axis else (0, 0) for each in (0, 1)], constant_values=-np.inf
        )
        near = (np.take(padded, range(shift, shift + side), axis) for shift in range(2 * REACH + 1))
        scores = functools.reduce(np.maximum, near)
    return scores
