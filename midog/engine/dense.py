"""Tiles -> maps -> places: dense detectors, whose members and views are averaged on maps before places are taken.

A dense network takes float32 (N, 3, H, W) RGB in [0, 1] and gives logits float32 (N, 1, H / stride, W / stride), one
cell `stride` px. `MeanMap` and `MapViews` have the same signature; `PlaceDetector` makes a `Detector` of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from midog.engine.views import VIEWS, dihedral, undone
from midog.engine.weights import autocast

REACH = 3  # cells on each side of a place that are no higher (of 1 um: half a box of 7 um)


class MeanMap(nn.Module):
    """Networks of one architecture as one: the mean of their logits, cell by cell.

    Args:
        networks: modules, (N, 3, H, W) -> logits (N, 1, h, w).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        total = self.networks[0](tiles)
        for network in self.networks[1:]:
            total = total + network(tiles)
        return total / len(self.networks)


class MapViews(nn.Module):
    """The mean of the maps of dihedral views, each turned back; the views go through one after the other.

    Args:
        network: module, (N, 3, H, W) -> logits (N, 1, h, w).
        count: of views: 1, 2, 4 or 8.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.views = network, VIEWS[count]

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for view in self.views:
            turned = dihedral(tiles, view).contiguous(memory_format=torch.channels_last)
            total = total + undone(self.network(turned), view)
        return total / len(self.views)


class PlaceDetector:
    """The maxima of a map as a `midog.engine.detector.Detector`: each gets a box of one size.

    Args:
        network: module, (N, 3, H, W) -> logits (N, 1, H / stride, W / stride).
        score_threshold: the least probability of a place.
        stride: px to a cell.
        box_px: side of the boxes.
        precision: as `midog.engine.weights.autocast`.
    """

    def __init__(
        self, network: nn.Module, score_threshold: float, stride: int, box_px: float, precision: str = "auto"
    ) -> None:
        self.network, self.score_threshold = network.eval(), score_threshold
        self.stride, self.box_px, self.precision = stride, box_px, precision

    def __call__(self, tiles: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
        with autocast(tiles.device, self.precision):
            logits = self.network(tiles.contiguous(memory_format=torch.channels_last))
        scores = torch.sigmoid(logits[:, 0].float())
        highest = F.max_pool2d(scores, 2 * REACH + 1, stride=1, padding=REACH)
        found = []
        for score, peak in zip(scores, highest, strict=True):
            rows, columns = torch.nonzero((score == peak) & (score >= self.score_threshold), as_tuple=True)
            cells = torch.stack([columns, rows], 1).cpu().numpy().astype(np.float32)
            centres = cells * self.stride + (self.stride - 1) / 2  # a pixel's centre is at integers
            boxes = np.concatenate([centres - self.box_px / 2, centres + self.box_px / 2], 1)
            found.append((boxes.astype(np.float32), score[rows, columns].cpu().numpy()))
        return found
