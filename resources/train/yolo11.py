"""Train YOLO11, plain or improved, for Track 1.

    python -m resources.train.yolo11 --system NAME --data DIR[:CASE,CASE] ... --crops DIR ... --mined FILE.csv ...
        --validation DIR[:CASE,CASE] ... --out DIR

Xiao, Lyu and Liu's detector: LSConv and EMA attention in YOLO11's graph; the loss is Ultralytics'. The recipe is
`training.detector` of resources/systems/NAME.yaml (sztu is the paper's, sztu_small and yolo11_small a processor's).
OUT/model/NAME/ is the export; python -m resources.train.candidates adds the second stage.
"""

import sys
from collections.abc import Sequence

from midog.errors import exit_code
from resources.train.kit.detector import train_detector
from resources.train.kit.yolo11_loss import YOLO11Loss, prepare_yolo11


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train_detector, argv, __doc__, "yolo11", {"ultralytics": YOLO11Loss}, prepare_yolo11)


if __name__ == "__main__":
    sys.exit(main())
