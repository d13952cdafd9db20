"""What precision and engine change: the same weights on the same images, in every way that they can be run here.

    python -m midog export-openvino --out output/openvino
    python -m resources.benchmark.agreement --track 1 --data DIR[:CASES] ... [--exported output/openvino]

Prints for each way the average precision (Track 1) or ROC AUC (Track 2), and how far it is from that of PyTorch in
float32; how far probabilities are; and how many figures (crops) only one of the two accepts (calls atypical): those
whose probability is within .01 of .5 in float32, and the others. "auto" is bfloat16 where the processor has it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

from midog.arguments import PRECISIONS
from midog.errors import exit_code
from midog.evaluation.cases import case_of
from midog.evaluation.labelled import Labelled, read_labelled, results_of
from midog.evaluation.metrics import Case, DetectionCase, average_precision, scores_and_labels
from midog.run import load
from midog.system import Precision

SAME_MM = 0.004  # two candidates so near are one
DOUBTFUL = 0.01  # so near to .5 a probability may fall on either side


def cases_of(
    track: int, labelled: Labelled, system: str | None, model: Path | None, precision: Precision
) -> list[Case]:
    """What a system says of labelled images on a CPU."""
    runner = load(system, track, model, "cpu", precision)
    print(f"{runner.system} on {runner.runs_on}", flush=True)
    return [case_of(track, image, labelled.truths[image], result) for image, result in results_of(runner, labelled)]


def ranking(cases: Sequence[Case]) -> float:
    """What ranks the track: average precision, or ROC AUC."""
    detections = [case for case in cases if isinstance(case, DetectionCase)]
    if detections:
        return average_precision(detections)
    scores, labels = scores_and_labels(cases)
    return float(roc_auc_score(labels, scores))


def paired(one: Case, other: Case) -> NDArray[np.float64]:
    """Probabilities of the same candidates or crops by both, float64 (K, 2); 0 where one has no such candidate."""
    if not isinstance(one, DetectionCase) or not isinstance(other, DetectionCase):
        return np.stack([one.scores, other.scores], 1)
    near = cKDTree(other.points).query(one.points, distance_upper_bound=SAME_MM)[1] if len(other.points) else []
    found = np.asarray(near, np.int64)
    theirs = np.append(other.scores, 0.0)[found]  # where none is near, the number is one behind the last
    alone = np.setdiff1d(np.arange(len(other.scores)), found)
    both = np.stack([one.scores, theirs], 1) if len(found) else np.zeros((0, 2))
    return np.concatenate([both, np.stack([np.zeros(len(alone)), other.scores[alone]], 1)])


def compare(arguments: argparse.Namespace) -> None:
    labelled = read_labelled(arguments.track, arguments.data)
    engines = {"PyTorch": arguments.model} | ({"OpenVINO": arguments.exported} if arguments.exported else {})
    float32: list[Case] = []
    for engine, model in engines.items():
        for precision in PRECISIONS:
            cases = cases_of(arguments.track, labelled, arguments.system, model, precision)
            float32 = float32 or cases
            both = np.concatenate([paired(*pair) for pair in zip(float32, cases, strict=True)])
            apart = np.abs(both[:, 0] - both[:, 1])
            flipped = (both >= 0.5).sum(1) == 1
            doubtful = np.abs(both[:, 0] - 0.5) <= DOUBTFUL
            rank, near = ranking(cases), int((flipped & doubtful).sum())
            print(
                f"{engine}, {precision}: {'AP' if arguments.track == 1 else 'AUC'} {rank:.4f} "
                f"({rank - ranking(float32):+.4f}); {len(both)} probabilities, apart by {apart.mean():.4f} (mean), "
                f"{np.quantile(apart, 0.99):.4f} for 99 %; of {(both[:, 0] >= 0.5).sum()} accepted by the first, "
                f"only one accepts {near} within {DOUBTFUL:g} of .5 and {flipped.sum() - near} beyond",
                flush=True,
            )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.agreement",
        description="What precision and engine change of a system's answers on labelled images, on this CPU.",
    )
    parser.add_argument("--track", type=int, choices=(1, 2), required=True, help="1: detection, 2: atypical or normal")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASES]", help="as midog evaluate takes them")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights for PyTorch (as inference.py)")
    parser.add_argument("--exported", type=Path, metavar="DIR", help="weights that midog export-openvino wrote")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(compare, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
