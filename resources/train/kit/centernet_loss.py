"""CenterNet's loss on maps of centres: Zhou, Wang and Krähenbühl, "Objects as Points", arXiv 1904.07850, section 3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from resources.train.kit.whole import Total, itself

ALPHA, BETA = 2, 4  # of equation 1
CENTRE = 0.9  # of the target, from which on a cell holds a centre, which may lie between several


def centre_map(centres: torch.Tensor, height: int, width: int, stride: int, deviation: float) -> torch.Tensor:
    """The target of an image: a Gaussian around each centre, and of several the highest.

    Args:
        centres: float (K, 2), x and y in px of the image, which may lie outside.
        height, width: of the map, cells.
        stride: px to a cell.
        deviation: of the Gaussians, px.

    Returns:
        float (height, width), 1 at the cells nearest to each centre.
    """
    if not len(centres):
        return centres.new_zeros(height, width)
    middle = (stride - 1) / 2  # of a cell; a pixel's centre is at integers
    x = torch.arange(width, device=centres.device) * stride + middle
    y = torch.arange(height, device=centres.device) * stride + middle
    squares = (x - centres[:, :1])[:, None, :] ** 2 + (y - centres[:, 1:])[:, :, None] ** 2
    heat = torch.exp(-squares / (2 * deviation**2))
    nearest = (squares == squares.amin((1, 2), keepdim=True)) & (squares <= stride**2 / 2)  # none where it lies outside
    return torch.where(nearest, 1.0, heat).amax(0)


def centernet_loss(logits: torch.Tensor, targets: torch.Tensor, total: Total = itself) -> torch.Tensor:
    """Equation 1, the focal loss of CornerNet: over the number of cells that hold a centre.

    Args:
        logits: float (N, H, W).
        targets: float (N, H, W), see `centre_map`.
        total: of a count, over the whole batch that these maps are a part of.

    Returns:
        a scalar, these maps' part of the batch's loss.
    """
    probability = torch.sigmoid(logits)
    holds = targets > CENTRE
    positive = (1 - probability) ** ALPHA * F.logsigmoid(logits)
    negative = (1 - targets) ** BETA * probability**ALPHA * F.logsigmoid(-logits)
    return -torch.where(holds, positive, negative).sum() / total(holds.sum()).clamp_min(1)


def targets_of(truths: Sequence[torch.Tensor], shape: torch.Size, stride: int, deviation: float) -> torch.Tensor:
    """`centre_map` of the boxes (K, 4) of each image, for logits of a shape (N, H, W)."""
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in truths]
    return torch.stack([centre_map(each, shape[1], shape[2], stride, deviation) for each in centres])
