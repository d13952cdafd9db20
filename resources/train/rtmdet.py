"""Train RTMDet for Track 1 with the bag of tricks.

    python resources/train/rtmdet.py --data DIR[:CASE,CASE] ... --crops DIR ... --mined FILE ... \
        --validation DIR[:CASE] ... --system NAME --out DIR

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection",
arXiv 2508.19804. The recipe is `training.detector` of resources/systems/NAME.yaml
(rtmdet_s is the paper's, rtmdet_tiny a processor's); OUT/model/NAME/ is the
export: the weights and their averages as the members of one system.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from midog.errors import exit_code  # noqa: E402
from resources.train.loop_detector import run  # noqa: E402
from resources.train.rtmdet_loss import LOSSES, RTMDetLoss  # noqa: E402


def main(argv=None):
    losses = {kind: RTMDetLoss(kind) for kind in LOSSES}
    return exit_code(run, argv, __doc__, "rtmdet", losses)


if __name__ == "__main__":
    sys.exit(main())
