"""Run a Track 1 system over labelled fields and print its figures, by the organisers' matching.

    python resources/train/evaluate_detection.py --model DIR --system NAME --data DIR[:CASE,CASE] ...

One row a --data: TP, FP, FN, precision, recall and F1 at 7.5 um (`evalutils.scorers.score_detection`, summed over
fields), and false positives per mm2.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.classify import choose_device  # noqa: E402
from midog.detect import SystemDetector  # noqa: E402
from midog.errors import exit_code  # noqa: E402
from midog.system import find_system, model_folder  # noqa: E402
from resources.data.fields import read_fields  # noqa: E402

MATCH_MM = 7.5e-3


def score(field, found, accepted):
    """TP, FP, FN of a field, as the organisers count them."""
    from evalutils.scorers import score_detection

    mm = np.array(field.um_per_px) / 1000
    truth = field.figures.astype(float) * mm
    centres = (found["box"][accepted, :2] + found["box"][accepted, 2:]) / 2 * mm
    counts = score_detection(ground_truth=truth.tolist(), predictions=centres.tolist(), radius=MATCH_MM)
    return np.array([counts.true_positives, counts.false_positives, counts.false_negatives])


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def evaluate(arguments):
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    detector = SystemDetector(system, choose_device(arguments.device), tqdm.write)
    print(f"{system.system} {system.version}, trained on {', '.join(system.data)}")
    print(f"{'fields':40s}   TP   FP   FN  precision  recall      F1    mm2  FP/mm2  candidates")
    for selection in arguments.data:
        fields = read_fields([selection])
        counts, candidates = np.zeros(3, int), 0
        for field in tqdm(fields, Path(selection).name, disable=None, leave=False):
            found = detector(field)
            candidates += len(found)
            counts += score(field, found, found["probability"] >= 0.5)
        true, false, missed = counts
        area = sum(field.area_mm2 for field in fields)
        shares = true / max(true + false, 1), true / max(true + missed, 1), 2 * true / max(2 * true + false + missed, 1)
        print(
            f"{Path(selection).name:40s} {true:4d} {false:4d} {missed:4d} {{:10.3f}} {{:7.3f}} {{:7.3f}}".format(
                *shares
            )
            + f" {area:6.2f} {false / area:7.2f}  {candidates:10d}",
            flush=True,
        )


def main(argv=None):
    return exit_code(evaluate, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
