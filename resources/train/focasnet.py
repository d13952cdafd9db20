"""Train M_det, the detector of FoCasNet, for Track 1.

    python -m resources.train.focasnet --system NAME --data DIR[:CASE,CASE] ... --crops DIR ... --mined FILE.csv ...
        --validation DIR[:CASE,CASE] ... --out DIR

Wang et al., arXiv 2301.07627, section 3.1. The recipe is `training.detector` of resources/systems/NAME.yaml (focasnet
is the paper's, focasnet_small a processor's); `--set detector.options.cbam=false` and the like switch its parts, as the
paper's table 1 does; `detector.options.backbone=resnext50 detector.options.anchor_based=false` is the published code's
network. OUT/model/NAME/ is the export; python -m resources.train.candidates adds M_class.
"""

import sys
from collections.abc import Sequence

import torch

from midog.errors import exit_code
from midog.models.focasnet import FoCasNet
from resources.train.kit.detector import Loss, train_detector
from resources.train.kit.focasnet_loss import focasnet_loss
from resources.train.kit.whole import Total


def make_loss() -> Loss:
    """Both branches' losses."""

    def loss(
        network: torch.nn.Module, images: torch.Tensor, truths: Sequence[torch.Tensor], total: Total
    ) -> torch.Tensor:
        assert isinstance(network, FoCasNet)
        return focasnet_loss(network.branches(images), truths, total)[0]

    return loss


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train_detector, argv, __doc__, "focasnet", {"focasnet": make_loss})


if __name__ == "__main__":
    sys.exit(main())
