"""Mine look-alikes: what a Track 1 system takes for mitotic figures where there are none.

    python resources/train/mine.py --model DIR --system NAME --data DIR[:CASE,CASE] ... --out FILE.csv

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", "Hard Negative Mining": a trained detector
runs at a low threshold, .25, over tissue without figures, and what it finds becomes non-mitotic figures to learn from.
Here labelled fields will do as well: what lies farther from every mitotic figure than a box is wide counts as mined. A
figure that the readers missed is mined with the rest, so it takes well-read fields.

The threshold is on the detector's own score, of two-stage systems too, whose second stage is not run: the score is the
paper's confidence, no calibration moves it, and a second stage would hide what the detector has yet to learn.

FILE.csv has the columns set (the folder's name), image, x, y (px of the image as stored), label and score;
`--mined FILE.csv` hands it to the trainings.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.engine.two_stages import SystemDetector  # noqa: E402
from midog.engine.weights import choose_device  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.files import check_writable, write_file  # noqa: E402
from midog.system import find_system, model_folder  # noqa: E402
from resources.data.fields import CLASSES, MINED_COLUMNS, read_fields, scale_points  # noqa: E402


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR[:CASE]", help="fields, or tissue without figures"
    )
    parser.add_argument("--out", required=True, metavar="FILE.csv", type=Path, help="for what is mined")
    parser.add_argument("--threshold", type=float, default=0.25, help="least score of the detector (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def mined_from(field, found, box_um):
    """The detections of a field that are no labelled mitotic figure.

    Args:
        field: `resources.data.fields.Field`.
        found: `midog.detections.Detections` in px of the field.
        box_um: side of a figure's box.

    Returns:
        list of rows, the values of `MINED_COLUMNS`.
    """
    rows = []
    for centre, score in zip(found.centres, found.scores, strict=True):
        if (np.hypot(*((field.figures - centre) * field.um_per_px).T) > box_um).all():
            x, y = (round(float(each), 2) for each in scale_points(centre, 1 / field.factor))
            rows.append((field.source, field.name, x, y, CLASSES[1], round(float(score), 4)))
    return rows


def mine(arguments):
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    lowest = system.detector.score_threshold
    if arguments.threshold < lowest:
        raise UserError(
            f"{system.folder / 'model.yaml'}: score_threshold is {lowest}, nothing is found below; "
            f"give --threshold {lowest} or more"
        )
    check_writable(arguments.out.parent)
    detector = SystemDetector(msgspec.structs.replace(system, classifier=None), choose_device(arguments.device))
    fields = read_fields(arguments.data)
    rows, detections = [], 0
    for field in tqdm(fields, "fields", disable=None):
        found = detector(field)
        found = found[found.scores >= arguments.threshold]
        detections += len(found)
        rows += mined_from(field, found, system.detector.box_um)
    write_file(arguments.out, pd.DataFrame(rows, columns=MINED_COLUMNS).to_csv(index=False))
    area = sum(field.area_mm2 for field in fields)
    print(
        f"{arguments.out}: {len(fields)} images, {area:.2f} mm2, {detections} detections, {len(rows)} look-alikes "
        f"({len(rows) / area:.1f} a mm2)"
    )


def main(argv=None):
    return exit_code(mine, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
