"""Train a detector of torchvision for Track 1: Faster R-CNN or SSD, rows of FoCasNet's comparison.

    python -m resources.train.torchvision_detector --system NAME --data DIR[:CASE,CASE] ... --crops DIR ...
        --mined FILE.csv ... --validation DIR[:CASE,CASE] ... --out DIR

Wang et al., arXiv 2301.07627, tables 5 and 8. The recipe is `training.detector` of resources/systems/NAME.yaml
(faster_rcnn or ssd). OUT/model/NAME/ is the export.
"""

import sys
from collections.abc import Sequence

import torch

from midog.errors import exit_code
from midog.models.torchvision_detectors import SSD, FasterRCNN
from resources.train.kit.detector import Loss, train_detector
from resources.train.kit.whole import Total


def make_loss() -> Loss:
    """torchvision's own, a mean over the images of each forward."""

    def loss(
        network: torch.nn.Module, images: torch.Tensor, truths: Sequence[torch.Tensor], total: Total
    ) -> torch.Tensor:
        assert isinstance(network, FasterRCNN | SSD)
        parts = network.losses(images, truths).values()
        return sum(parts, images.new_zeros(())) * len(images) / total(torch.tensor(len(images), device=images.device))

    return loss


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train_detector, argv, __doc__, "torchvision_detector", {"torchvision": make_loss})


if __name__ == "__main__":
    sys.exit(main())
