"""Train M_det, the detector of FoCasNet, for Track 1.

    python resources/train/focasnet.py --data DIR[:CASE,CASE] ... --crops DIR ... --mined FILE ... \
        --validation DIR[:CASE] ... --system NAME --out DIR

Wang et al., arXiv 2301.07627, section 3.1. The recipe is `training.detector` of
resources/systems/NAME.yaml; `--options cbam=false` and the like switch its parts,
as the paper's table 1 does.
OUT/model/NAME/ is the export. M_class follows: resources/train/candidate.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from midog.errors import exit_code  # noqa: E402
from resources.train.focasnet_loss import focasnet_loss  # noqa: E402
from resources.train.loop_detector import run  # noqa: E402


def loss(network, images, truths):
    return focasnet_loss(network.branches(images), truths)[0]


def main(argv=None):
    return exit_code(run, argv, __doc__, "focasnet", {"focasnet": loss})


if __name__ == "__main__":
    sys.exit(main())
