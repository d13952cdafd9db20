"""RTMDet's label assignment and losses.

Lyu et al., arXiv 2212.07784, section 3.3: dynamic soft label assignment, quality
focal loss and GIoU loss. Marzahl and Napora, "A bag of tricks for real-time
Mitotic Figure detection", arXiv 2508.19804, take focal loss and IoU loss instead.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from midog.models.rtmdet import grid_points
from resources.train.kit.whole import Total, itself

IOU_COST_WEIGHT = 3.0
CENTRE_RADIUS = 3.0  # strides, where the centre prior's cost is 1
TOP_CANDIDATES = 13  # whose IoU decides how many grid points a truth gets
BOX_LOSS_WEIGHT = 2.0
GAMMA = 2.0
LOSSES = ("focal", "quality")


def assign(
    boxes: torch.Tensor, logits: torch.Tensor, points: torch.Tensor, strides: torch.Tensor, truths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which grid point answers for which truth in one image (section 3.3, equations 1 to 4), for one class.

    Args:
        boxes: float (P, 4), predicted, px.
        logits: float (P,).
        points, strides: (2, P) px and (P,) px, see `midog.models.rtmdet.grid_points`.
        truths: float (K, 4), px.

    Returns:
        int64 (P,), the truth of each point or -1; float (P,), IoU of the point's box with it, 0 where there is none.
    """
    owner = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    quality = boxes.new_zeros(len(boxes))
    x, y = points[:, :, None]
    inside = (x > truths[:, 0]) & (x < truths[:, 2]) & (y > truths[:, 1]) & (y < truths[:, 3])
    # A point inside any truth competes for all of them; only the centre prior keeps it away from the others.
    candidates = inside.any(1).nonzero()[:, 0]
    if not len(candidates):
        return owner, quality
    iou = box_iou(boxes[candidates], truths)
    middles = (truths[:, :2] + truths[:, 2:]) / 2
    distance = torch.cdist(points.T[candidates], middles) / strides[candidates, None]
    logit = logits[candidates, None].expand_as(iou)
    entropy = F.binary_cross_entropy_with_logits(logit, iou, reduction="none")
    cost = (
        entropy * (iou - logit.sigmoid()).abs() ** 2  # equation 2
        - IOU_COST_WEIGHT * torch.log(iou + 1e-7)  # equation 3
        + 10 ** (distance - CENTRE_RADIUS)  # equation 4
    )
    best = iou.topk(min(TOP_CANDIDATES, len(iou)), dim=0).values
    counts = best.sum(0).int().clamp_min(1)
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    for truth, count in enumerate(counts.tolist()):
        chosen[cost[:, truth].topk(min(count, len(cost)), largest=False).indices, truth] = True
    cheapest = torch.where(chosen, cost, torch.inf).argmin(1)
    taken = chosen.any(1)
    owner[candidates[taken]] = cheapest[taken]
    quality[candidates[taken]] = iou[taken, cheapest[taken]]
    return owner, quality


class RTMDetLoss:
    """The loss of a batch.

    Args:
        kind: "focal" (the paper's: focal loss and IoU loss, each point counts alike) or "quality" (RTMDet's own:
            quality focal loss, and GIoU loss weighted by the IoU).
    """

    def __init__(self, kind: str) -> None:
        if kind not in LOSSES:
            raise ValueError(f"loss {kind!r} is not one of {', '.join(LOSSES)}")
        self.kind = kind

    def __call__(
        self, network: nn.Module, images: torch.Tensor, truths: Sequence[torch.Tensor], total: Total = itself
    ) -> torch.Tensor:
        """Forward and loss.

        Args:
            network: `midog.models.rtmdet.RTMDet` of one class.
            images: float (N, 3, H, W) in [0, 1].
            truths: list over images of float (K, 4) px.
            total: of a count, over the whole batch that these images are a part of.

        Returns:
            scalar, these images' part of the batch's loss.
        """
        boxes, logits = network(images)
        boxes, logits = boxes.float().transpose(1, 2), logits[:, 0].float()
        points, strides = grid_points(images.shape[2], images.shape[3], images.device)
        with torch.no_grad():
            assigned = [assign(*each[:2], points, strides, each[2]) for each in zip(boxes, logits, truths, strict=True)]
        owner = torch.stack([each for each, _ in assigned])
        quality = torch.stack([each for _, each in assigned])
        positive = owner >= 0
        theirs = torch.cat([truth[own[own >= 0]] for truth, own in zip(truths, owner, strict=True)])
        found = boxes[positive]
        if self.kind == "focal":
            classes = sigmoid_focal_loss(logits, positive.float(), gamma=GAMMA, reduction="sum")
            sides = 1 - paired_iou(found, theirs)
            weights = torch.ones_like(sides)
        else:
            entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
            classes = ((quality - logits.sigmoid()).abs() ** GAMMA * entropy).sum()
            sides = generalized_box_iou_loss(found, theirs)
            weights = quality[positive]
        return (classes + BOX_LOSS_WEIGHT * (sides * weights).sum()) / total(weights.sum()).clamp_min(1)


def paired_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of each box with its partner: float (N, 4), (N, 4) -> (N,); boxes with a side below 0 have none."""
    sides = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp_min(0)
    common = sides.prod(1)  # torchvision has pairs in its generalised losses only
    areas = [(each[:, 2:] - each[:, :2]).clamp_min(0).prod(1) for each in (first, second)]
    return common / (sum(areas) - common).clamp_min(1e-7)
