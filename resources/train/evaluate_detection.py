"""Run a Track 1 system over labelled fields and print its figures, by the organisers' matching.

    python resources/train/evaluate_detection.py --model DIR --system NAME --data DIR[:CASE,CASE] ...

One row a --data: TP, FP, FN, precision, recall and F1 at 7.5 um (`evalutils.scorers.score_detection`, summed over
fields), and false positives per mm2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.detections import Detections  # noqa: E402
from midog.engine.two_stages import SystemDetector  # noqa: E402
from midog.engine.weights import choose_device  # noqa: E402
from midog.errors import exit_code  # noqa: E402
from midog.evaluation.cases import warn_of_training_cases  # noqa: E402
from midog.evaluation.metrics import DetectionCase, DetectionCounts  # noqa: E402
from midog.system import find_system, model_folder  # noqa: E402
from resources.data.fields import Field, read_fields  # noqa: E402


def score(field: Field, found: Detections) -> DetectionCounts:
    """A field's counts, as the organisers count them."""
    truths = np.pad(field.figures.astype(np.float64) * np.array(field.um_per_px) / 1000, ((0, 0), (0, 1)))
    return DetectionCase(field.name, field.source, "hotspot", truths, found).counts


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> None:
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    detector = SystemDetector(system, choose_device(arguments.device))
    print(f"{system}, trained on {', '.join(source.set for source in system.made.data)}")
    print(f"{'fields':40s}   TP   FP   FN  precision  recall      F1    mm2  FP/mm2  candidates")
    for selection in arguments.data:
        fields = read_fields([selection])
        warn_of_training_cases(system, ((field.source, field.case) for field in fields))
        found = [detector(field) for field in tqdm(fields, Path(selection).name, disable=None, leave=False)]
        counts = [score(field, each) for field, each in zip(fields, found, strict=True)]
        true, missed, false = np.sum(counts, axis=0)
        area = sum(field.area_mm2 for field in fields)
        precision, recall = true / max(true + false, 1), true / max(true + missed, 1)
        f1 = 2 * true / max(2 * true + false + missed, 1)
        print(
            f"{Path(selection).name:40s} {true:4d} {false:4d} {missed:4d} {precision:10.3f} {recall:7.3f} {f1:7.3f}"
            f" {area:6.2f} {false / area:7.2f}  {sum(map(len, found)):10d}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(evaluate, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
