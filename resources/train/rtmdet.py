"""Train RTMDet for Track 1 with the bag of tricks.

    python -m resources.train.rtmdet --system NAME --data DIR[:CASE,CASE] ... --crops DIR ... --mined FILE.csv ...
        --validation DIR[:CASE,CASE] ... --out DIR

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", arXiv 2508.19804. The recipe is
`training.detector` of resources/systems/NAME.yaml (rtmdet_s is the paper's, rtmdet_tiny a processor's). OUT/model/NAME/
is the export: the weights and their averages as the members of one system.
"""

import sys
from collections.abc import Sequence
from functools import partial

from midog.errors import exit_code
from resources.train.kit.detector import train_detector
from resources.train.kit.rtmdet_loss import LOSSES, RTMDetLoss


def main(argv: Sequence[str] | None = None) -> int:
    losses = {kind: partial(RTMDetLoss, kind) for kind in LOSSES}
    return exit_code(train_detector, argv, __doc__, "rtmdet", losses)


if __name__ == "__main__":
    sys.exit(main())
