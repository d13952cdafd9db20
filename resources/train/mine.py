"""Mine hard negatives: what a Track 1 system takes for mitotic figures where there are none.

    python -m resources.train.mine --model DIR --system NAME --data DIR[:CASE,CASE] ... --out FILE.csv

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", "Hard Negative Mining": a trained detector
runs at a low threshold, .25, over tissue without figures, and what it finds becomes non-mitotic figures to learn from.
Here labelled fields will do as well: what lies farther from every mitotic figure than a box is wide counts as mined. A
figure that the readers missed is mined with the rest, so it takes well-read fields.

The threshold is on the detector's own score, of two-stage systems too, whose second stage is not run: the score is the
paper's confidence, no calibration moves it, and a second stage would hide what the detector has yet to learn.

FILE.csv has the columns set (the folder's name), image, x, y (px of the image as stored), label and score;
`--mined FILE.csv` hands it to the trainings. With `--split FILE --fold NAME` it mines what a training with the same
options learns from.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector
from midog.errors import UserError, exit_code
from midog.files import check_writable
from midog.system import find_system, model_folder
from resources.data.fields import read_fields
from resources.train.kit.arguments import add_split_arguments, chosen_folds
from resources.train.kit.mining import mine_fields, write_mined


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR[:CASE]", help="fields, or tissue without figures"
    )
    add_split_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE.csv", type=Path, help="for what is mined")
    parser.add_argument("--threshold", type=float, default=0.25, help="least score of the detector (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def mine(arguments: argparse.Namespace) -> None:
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    assert system.detector is not None
    lowest = system.detector.score_threshold
    if arguments.threshold < lowest:
        raise UserError(
            f"{system.folder / 'model.yaml'}: score_threshold is {lowest}, nothing is found below; "
            f"give --threshold {lowest} or more"
        )
    check_writable(arguments.out.parent)
    detector = SystemDetector(msgspec.structs.replace(system, classifier=None), TorchEngine(arguments.device))
    split, training, _ = chosen_folds(arguments)
    fields = read_fields(arguments.data, split, training)
    rows, detections = mine_fields(detector, fields, arguments.threshold, system.detector.box_um)
    write_mined(arguments.out, rows, fields, detections)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(mine, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
