"""The loss of FoCasNet's M_det: which output answers for which truth, and what it costs.

Anchor-based branch: RetinaNet (Lin et al., arXiv 1708.02002). Anchor-free
branch: FSAF (Zhu et al., arXiv 1903.00621). FoCasNet (arXiv 2301.07627, section
3.1 B) names the focal loss and the IoU loss, and gives no equation of them.

Truths of a batch stand in one table, with the image of each: T truths, float32
(T, 4) px, and int64 (T,). A pair is a truth and an anchor or grid point that
answers for it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, sigmoid_focal_loss

from midog.models.focasnet import FINEST_STRIDE, AnchorBased, AnchorFree, decode_distances
from resources.train.kit.whole import Total, itself

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4  # RetinaNet, section 4
ALPHA, GAMMA = 0.25, 2  # RetinaNet, equation 5 and table 1
BETA = 1 / 9  # where smooth L1 turns linear; RetinaNet's code
CORE = 0.2  # of a truth's side (FSAF, section 3.2)
MIN_CELL_FRACTION = 0.01  # of a cell that a core must cover
ANCHOR_FREE_WEIGHT = 0.5  # FSAF, section 3.4: lambda


def intersection(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Common area of boxes, float (..., 4) and (..., 4) -> (...), with broadcasting."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    sides = (high - low).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes, float (..., 4) and (..., 4) -> (...), with broadcasting; of empty ones 0."""
    common = intersection(first, second)  # torchvision's box_iou has no broadcasting, and of empty boxes NaN
    union = intersection(first, first) + intersection(second, second) - common
    return common / union.clamp_min(1e-6)


def iou_loss(boxes: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """-log IoU (FSAF, section 3.2); float (K, 4), (K, 4) -> (K,)."""
    return -iou(boxes, truths).clamp_min(1e-6).log()


def encode_deltas(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """The inverse of `decode_deltas`; float (..., 4), (..., 4) -> (..., 4)."""
    box_sides, anchor_sides = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + box_sides / 2 - anchors[..., :2] - anchor_sides / 2) / anchor_sides
    return torch.cat([shift, (box_sides / anchor_sides).log()], -1)


def assign_anchors(
    anchors: torch.Tensor, truths: torch.Tensor, image: torch.Tensor, images: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which anchors answer for which truths (RetinaNet, section 4).

    An anchor answers for the truth of its image that it overlaps most, from IoU .5 on. The anchors that overlap a truth
    most answer for it in any case. An anchor that overlaps two truths equally answers for both.

    Args:
        anchors: float (A, 4).
        truths, image: see this module.
        images: in the batch.

    Returns:
        truth int64 (K,), anchor int64 (K,): the pairs; bool (images, A): false where an anchor is neither figure nor
        background, from IoU .4 to .5.
    """
    overlap = box_iou(truths, anchors)
    nearest = (overlap == overlap.amax(1, keepdim=True)) & (overlap > 0)
    rank = overlap + nearest.float()  # being a truth's nearest beats any overlap
    best = rank.new_zeros(images, len(anchors)).scatter_reduce_(0, image[:, None].expand_as(rank), rank, "amax")
    truth, anchor = ((rank >= POSITIVE_IOU) & (rank == best[image])).nonzero(as_tuple=True)
    return truth, anchor, (best < NEGATIVE_IOU) | (best >= POSITIVE_IOU)


def assign_cores(
    points: torch.Tensor, levels: torch.Tensor, truths: torch.Tensor, image: torch.Tensor, images: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which grid points lie in the core of which truth, on every level.

    A point stands for a cell with the stride as its side. It must lie in the truth, and the core must cover more than a
    hundredth of the cell. Where cores meet, the point belongs to none.

    Args:
        points, levels: of `AnchorFree`.
        truths, image: see this module.
        images: in the batch.

    Returns:
        truth int64 (K,), point int64 (K,): the pairs; bool (images, F): true where no core is, the background.
    """
    half_cell = (FINEST_STRIDE * 2**levels / 2)[:, None]
    cells = torch.cat([points - half_cell, points + half_cell], 1)
    centres, half_core = (truths[:, :2] + truths[:, 2:]) / 2, CORE * (truths[:, 2:] - truths[:, :2]) / 2
    cores = torch.cat([centres - half_core, centres + half_core], 1)
    centred = ((points > truths[:, None, :2]) & (points < truths[:, None, 2:])).all(2)
    inside = centred & (intersection(cores[:, None], cells) > MIN_CELL_FRACTION * intersection(cells, cells))
    cores_here = torch.zeros(images, len(points), device=points.device).index_add_(0, image, inside.float())
    truth, point = (inside & (cores_here[image] == 1)).nonzero(as_tuple=True)
    return truth, point, cores_here == 0


def on_best_level(truth: torch.Tensor, level: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Online feature selection (FSAF, equations 1 to 3): which pairs are on the level where their truth costs least.

    Args:
        truth, level: int64 (K,), of each pair.
        loss: float (K,), of class and box.

    Returns:
        bool (K,).
    """
    if len(truth) == 0:
        return torch.zeros_like(truth, dtype=torch.bool)
    shape = int(truth.max()) + 1, int(level.max()) + 1
    total = loss.new_zeros(shape).index_put_((truth, level), loss, accumulate=True)
    pairs = loss.new_zeros(shape).index_put_((truth, level), torch.ones_like(loss), accumulate=True)
    mean = torch.where(pairs > 0, total / pairs, torch.inf)  # equations 1 and 2
    return level == mean.argmin(1)[truth]  # equation 3


def focal_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """RetinaNet, equation 5; float, of one shape -> the same shape."""
    return sigmoid_focal_loss(logits, targets, ALPHA, GAMMA)


def anchor_based_loss(
    branch: AnchorBased, truths: torch.Tensor, image: torch.Tensor, total: Total = itself
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and box loss of an `AnchorBased`, two scalars; both over the whole batch's positive anchors."""
    truth, anchor, counted = assign_anchors(branch.anchors, truths, image, len(branch.logits))
    targets = torch.zeros_like(branch.logits)
    targets[image[truth], anchor] = 1
    positives = total(torch.tensor(len(truth), device=truths.device)).clamp_min(1)
    of_class = (focal_loss(branch.logits, targets) * counted).sum()
    deltas, wanted = branch.deltas[image[truth], anchor], encode_deltas(truths[truth], branch.anchors[anchor])
    of_box = F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=BETA)
    return of_class / positives, of_box / positives


def anchor_free_loss(
    branch: AnchorFree, truths: torch.Tensor, image: torch.Tensor, total: Total = itself
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and box loss of an `AnchorFree`, two scalars; both over the whole batch's positive points.

    Grid points in a truth's core on the levels that were not chosen are neither figure nor background.
    """
    points, levels = branch.points, branch.levels
    truth, point, counted = assign_cores(points, levels, truths, image, len(branch.logits))
    boxes = decode_distances(branch.distances[image[truth], point], points[point], levels[point])
    box_loss = iou_loss(boxes, truths[truth])
    logits = branch.logits[image[truth], point]
    cost = (focal_loss(logits, torch.ones_like(logits)) + box_loss).detach()
    chosen = on_best_level(truth, levels[point], cost)
    truth, point = truth[chosen], point[chosen]
    targets = torch.zeros_like(branch.logits)
    targets[image[truth], point] = 1
    positives = total(torch.tensor(len(truth), device=truths.device)).clamp_min(1)
    of_class = (focal_loss(branch.logits, targets) * (counted | (targets > 0))).sum()
    return of_class / positives, box_loss[chosen].sum() / positives


def focasnet_loss(
    outputs: tuple[AnchorBased | None, AnchorFree | None], truths: Sequence[torch.Tensor], total: Total = itself
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch.

    Args:
        outputs: what `FoCasNet.branches` returns, for N images.
        truths: a list of N float (K, 4), boxes in px; K may be 0.
        total: of a count, over the whole batch that these images are a part of.

    Returns:
        Scalar with a gradient, and its parts by name, without: of the branches that there are anchor_class, anchor_box,
        free_class and free_box, already weighted.

    Raises:
        ValueError: not one entry of `truths` an image.
    """
    based, free = outputs
    logits = (based or free).logits  # type: ignore[union-attr]  # one is there
    if len(truths) != len(logits):
        raise ValueError(f"truths of {len(truths)} images for outputs of {len(logits)}")
    device = logits.device
    image = torch.repeat_interleave(torch.arange(len(truths)), torch.tensor([len(each) for each in truths])).to(device)
    table = torch.cat(list(truths)).to(device, torch.float32)
    parts: dict[str, torch.Tensor] = {}
    if based:
        parts |= zip(("anchor_class", "anchor_box"), anchor_based_loss(based, table, image, total), strict=True)
    if free:
        weight = ANCHOR_FREE_WEIGHT if based else 1.0  # beside the anchors' alone
        of_free = (weight * each for each in anchor_free_loss(free, table, image, total))
        parts |= zip(("free_class", "free_box"), of_free, strict=True)
    return sum(parts.values(), torch.zeros((), device=device)), {name: part.detach() for name, part in parts.items()}
