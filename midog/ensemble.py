"""Several detectors as one: the mean of their networks, or weighted box fusion of what they find.

Every detector here is a callable as `midog.detect` describes it: float32
(N, 3, H, W) in [0, 1] -> for each image boxes float32 (K, 4) px and scores
float32 (K,).
"""

import torch
from torch import nn

from midog.boxes import weighted_box_fusion
from midog.views import VIEWS, boxes_from_view, dihedral


class AveragedNetwork(nn.Module):
    """Networks of one architecture as one: the mean of their boxes and of their probabilities, place by place.

    Args:
        networks: modules, (N, 3, H, W) -> boxes (N, 4, P) px, logits (N, classes, P).

    Forward: the same, float32; a logit is that of the mean probability.
    """

    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, tiles):
        boxes, logits = zip(*(network(tiles) for network in self.networks), strict=True)
        probability = torch.stack([torch.sigmoid(each.float()) for each in logits]).mean(0)
        return torch.stack([each.float() for each in boxes]).mean(0), torch.logit(probability, eps=1e-6)


class FusedDetector:
    """Weighted box fusion of what several detectors find.

    Args:
        detectors: callables.
        least_iou: boxes that overlap by so much are one figure.
    """

    def __init__(self, detectors, least_iou):
        self.detectors, self.least_iou = detectors, least_iou

    def __call__(self, tiles):
        found = zip(*(detector(tiles) for detector in self.detectors), strict=True)
        return [weighted_box_fusion(each, self.least_iou) for each in found]


class DetectorView:
    """A detector that looks at a dihedral view, and tells where in the image its boxes lie."""

    def __init__(self, detector, view):
        self.detector, self.view = detector, view

    def __call__(self, tiles):
        found = self.detector(dihedral(tiles, self.view))
        return [(boxes_from_view(boxes, self.view, *tiles.shape[2:]), scores) for boxes, scores in found]


class DetectorViews(FusedDetector):
    """Weighted box fusion of what a detector finds in the dihedral views of an image.

    The views go through the detector one after the other: a batch of them all takes as many times the memory, and no
    less time on a CPU, where the batch is as large as pays already.

    Args:
        detector: callable.
        count: of views: 1, 2, 4 or 8.
        least_iou: as `FusedDetector`.
    """

    def __init__(self, detector, count, least_iou):
        super().__init__([DetectorView(detector, view) for view in VIEWS[count]], least_iou)
