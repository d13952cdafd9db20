"""torchvision's Faster R-CNN and SSD as detectors: rows of FoCasNet's comparison (arXiv 2301.07627, tables 5 and 8).

Faster R-CNN: Ren et al., arXiv 1506.01497, on ResNet-50 with a feature pyramid. SSD: Liu et al., arXiv 1512.02325, on
VGG-16, as SSD300. Layers, assignment and losses are torchvision's, with its settings. Ours is what stands around them:
tiles are not resized, so that boxes are in their pixels, and all boxes are given, with logits, before any threshold.

Original code: pytorch/vision, BSD-3-Clause; its weights may have terms of their own.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, ssd300_vgg16
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

CLASSES = 2  # background, figure
PROPOSALS = 1000  # a tile, of Faster R-CNN
ABSENT = -100.0  # logit of a place without a box
SSD_SIDE = 300  # px of the image that SSD300's default boxes are fractions of
SSD_LEAST = 288  # px: of less, its coarsest map is empty


class _Detector(nn.Module):
    """What the two have in common.

    Args:
        detector: torchvision's.
    """

    least_side = 32
    detector: Any
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        for name, values in (("mean", detector.transform.image_mean), ("std", detector.transform.image_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        detector.transform = nn.Identity()  # which would resize
        self.detector = detector

    def maps(self, images: torch.Tensor) -> tuple[ImageList, dict[str, torch.Tensor]]:
        """Normalised tiles, filled up with their mean at the right and below, and the backbone's float32 maps."""
        missing = [max(0, self.least_side - side) for side in images.shape[2:]]
        tiles = F.pad((images - self.mean) / self.std, (0, missing[1], 0, missing[0]))
        maps = {name: each.float() for name, each in self.detector.backbone(tiles).items()}
        return ImageList(tiles, [(tiles.shape[2], tiles.shape[3])] * len(tiles)), maps


def _float32(images: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Behind the backbone: half precision cannot tell a pixel from its neighbour across a tile."""
    return torch.autocast(images.device.type, enabled=False)


@contextlib.contextmanager
def _mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Some modules, without those inside, as in training or not: torchvision's ask it what they shall give."""
    before = [each.training for each in modules]
    for each in modules:
        each.training = training
    try:
        yield
    finally:
        for each, value in zip(modules, before, strict=True):
            each.training = value


def _targets(truths: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [
        {"boxes": each.float(), "labels": torch.ones(len(each), dtype=torch.int64, device=each.device)}
        for each in truths
    ]


class FasterRCNN(_Detector):
    """Faster R-CNN.

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> boxes float32 (N, 4, P) as x0, y0, x1, y1 in
    px, logits float32 (N, 1, P): of the proposals, best first and in no fixed place, filled up to P = 1,000 with empty
    boxes whose score is 0. So members of a system are joined by box fusion, not place by place.
    """

    def __init__(self) -> None:
        super().__init__(
            fasterrcnn_resnet50_fpn(
                weights=None, weights_backbone=None, num_classes=CLASSES, rpn_post_nms_top_n_test=PROPOSALS
            )
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tiles, maps = self.maps(images)
        rpn, heads = self.detector.rpn, self.detector.roi_heads
        with _float32(images), _mode(False, rpn):
            proposals, _ = rpn(tiles, maps)
            regions = heads.box_head(heads.box_roi_pool(maps, proposals, tiles.image_sizes))
            classes, deltas = heads.box_predictor(regions)
            boxes = heads.box_coder.decode_single(deltas, torch.cat(proposals)).reshape(-1, CLASSES, 4)[:, 1]
        counts = [len(each) for each in proposals]
        filled, logits = boxes.new_zeros(len(images), PROPOSALS, 4), boxes.new_full((len(images), 1, PROPOSALS), ABSENT)
        for number, (box, logit) in enumerate(zip(boxes.split(counts), classes.split(counts), strict=True)):
            filled[number, : len(box)], logits[number, 0, : len(box)] = box, logit[:, 1] - logit[:, 0]
        return filled.transpose(1, 2), logits

    def losses(self, images: torch.Tensor, truths: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of the proposals (objectness, boxes) and of the regions (class, boxes), each a mean over these images.

        Args:
            images: as forward.
            truths: list over images of float (K, 4) px.

        Returns:
            four scalars by name; their sum is the loss (arXiv 1506.01497, equation 1, twice).
        """
        tiles, maps = self.maps(images)
        targets, rpn, heads = _targets(truths), self.detector.rpn, self.detector.roi_heads
        with _float32(images), _mode(True, rpn, heads):
            proposals, of_proposals = rpn(tiles, maps, targets)
            _, of_regions = heads(maps, proposals, tiles.image_sizes, targets)
        return of_proposals | of_regions


class TileBoxes(DefaultBoxGenerator):
    """SSD300's default boxes, as large in px in every tile as in one of 300 px, their centres evenly over the tile.

    torchvision's are fractions of the image: of tiles that are larger than those of the training, larger boxes.
    """

    def forward(self, images: ImageList, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The boxes of each image, float32 (A, 4) px."""
        height, width = images.tensors.shape[2:]
        relative = self._grid_default_boxes([each.shape[2:] for each in maps], [height, width]).to(maps[0].device)
        centres, half = relative[:, :2] * relative.new_tensor([width, height]), relative[:, 2:] * SSD_SIDE / 2
        return [torch.cat([centres - half, centres + half], 1)] * len(images.image_sizes)


class SSD(_Detector):
    """SSD300.

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> boxes float32 (N, 4, P) as x0, y0, x1, y1 in
    px, logits float32 (N, 1, P): of the default boxes, from fine to coarse. Of tiles below 288 px some lie beyond.
    """

    least_side = SSD_LEAST

    def __init__(self) -> None:
        detector = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES)
        theirs = detector.anchor_generator
        detector.anchor_generator = TileBoxes(theirs.aspect_ratios, scales=theirs.scales)
        super().__init__(detector)

    def _outputs(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """What torchvision's head gives, and the default boxes of each image."""
        tiles, named = self.maps(images)
        maps = list(named.values())
        with _float32(images):
            return self.detector.head(maps), self.detector.anchor_generator(tiles, maps)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, anchors = self._outputs(images)
        deltas, classes = outputs["bbox_regression"], outputs["cls_logits"]
        boxes = self.detector.box_coder.decode_single(deltas.flatten(0, 1), torch.cat(anchors)).view_as(deltas)
        return boxes.transpose(1, 2), (classes[..., 1] - classes[..., 0])[:, None]

    def losses(self, images: torch.Tensor, truths: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of class and box, over the default boxes of these images that have a truth (arXiv 1512.02325, equation 1).

        Args:
            images: as forward.
            truths: list over images of float (K, 4) px.

        Returns:
            two scalars by name; their sum is the loss.
        """
        outputs, anchors = self._outputs(images)
        matched = [
            self.detector.proposal_matcher(box_iou(truth.float(), each))
            if len(truth)
            else torch.full((len(each),), -1, device=each.device)
            for truth, each in zip(truths, anchors, strict=True)
        ]
        with _float32(images):
            return self.detector.compute_loss(_targets(truths), outputs, anchors, matched)


NETWORKS: dict[str, Callable[[], FasterRCNN | SSD]] = {"fasterrcnn_resnet50_fpn": FasterRCNN, "ssd300_vgg16": SSD}


def torchvision_detector(name: str) -> FasterRCNN | SSD:
    """A detector of torchvision, without weights.

    Raises:
        ValueError: another name than those of `NETWORKS`.
    """
    if name not in NETWORKS:
        raise ValueError(f"name {name!r} is not one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
