"""Train CenterNet's map of centres, the first stage of Track 1's default.

    python -m resources.train.centernet --system NAME --data DIR[:CASE,CASE] ... --mined FILE.csv ...
        --validation DIR[:CASE,CASE] ... --out DIR

Zhou, Wang and Krähenbühl, "Objects as Points", arXiv 1904.07850. The recipe is `training.detector` of
resources/systems/NAME.yaml. Every labelled crop is dense tissue here, so folders of crops belong to --data. OUT/model/
NAME/ is the export; python -m resources.train.candidates adds the second stage, and python -m resources.train.folds
trains both out of fold.
"""

import sys
from collections.abc import Sequence

import torch

from midog.errors import exit_code
from midog.models.centernet import CenterNet
from resources.train.kit.centernet_loss import centernet_loss, targets_of
from resources.train.kit.detector import Loss, train_detector
from resources.train.kit.whole import Total

DEVIATION_PX = 4.0  # 2 um at .5 um per pixel, half a metaphase plate


def make_loss() -> Loss:
    """Equation 1 on Gaussians of one size."""

    def loss(
        network: torch.nn.Module, images: torch.Tensor, truths: Sequence[torch.Tensor], total: Total
    ) -> torch.Tensor:
        assert isinstance(network, CenterNet)
        logits = network(images)[:, 0]
        return centernet_loss(logits, targets_of(truths, logits.shape, network.stride, DEVIATION_PX), total)

    return loss


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train_detector, argv, __doc__, "centernet", {"focal": make_loss})


if __name__ == "__main__":
    sys.exit(main())
