"""How well 30 or 50 verdicts mend a bad threshold: verdicts simulated from labels, many draws.

    python -m midog predict FIELDS --out PREDICTIONS
    python -m resources.benchmark.local_threshold --data DIR[:CASES] ... --predictions PREDICTIONS

The fields of each --data are one slide, whose scores are shifted. Verdicts are of candidates that are drawn evenly over
the ranks as the page offers them. docs/CHECK.md has what it printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from midog.calibration import logit, sigmoid
from midog.errors import exit_code
from midog.evaluation.cases import read_cases
from midog.evaluation.labelled import read_labelled
from midog.evaluation.local_threshold import best_threshold, find, offset_of
from midog.evaluation.metrics import DetectionCase, f1

SHIFTS = -3, -2, 0, 2, 3  # logits
VERDICTS = 30, 50
LEAST_RANKS = 80  # that verdicts are spread over; else twice those that are accepted


def simulate(arguments: argparse.Namespace) -> None:
    """Print a row a slide, shift and number of verdicts."""
    random = np.random.default_rng(0)
    print("| slide | candidates | figures | shift | verdicts | F1 before | after | lowest | with all | covered |")
    print("|" + "---|" * 10)
    for selection in arguments.data:
        truths = read_labelled(1, [selection]).truths
        cases = cast("list[DetectionCase]", read_cases(1, truths, arguments.predictions, chosen=True)[0])
        scores = np.concatenate([case.scores for case in cases])
        hits = np.concatenate([case.matched(np.ones(len(case.scores), bool)) for case in cases])
        figures = sum(case.positives for case in cases)
        for shift in SHIFTS:
            shifted = sigmoid(logit(scores) + shift)
            known = best_threshold(logit(shifted), float(offset_of(logit(shifted), hits)))
            before, best = (_f1_at(shifted, hits, figures, threshold) for threshold in (0.5, known))
            for verdicts in VERDICTS:
                after, covered = [], []
                for _ in tqdm(range(arguments.draws), selection, disable=None, leave=False):
                    judged = _drawn(shifted, verdicts, random)
                    found = find(shifted, judged, hits[judged])
                    after.append(_f1_at(shifted, hits, figures, found.threshold))
                    covered.append(found.interval_95[0] <= known <= found.interval_95[1])
                cells: list[Any] = [selection.split("/")[-1], len(scores), figures, f"{shift:+d}", verdicts]
                cells += [f"{value:.3f}" for value in (before, np.mean(after), min(after), best)]
                print("|", " | ".join(map(str, [*cells, f"{np.mean(covered):.0%}"])), "|", flush=True)


def _f1_at(scores: NDArray[np.float64], hits: NDArray[np.bool_], figures: int, threshold: float) -> float:
    called = scores >= threshold
    true = int((hits & called).sum())
    return float(f1(true, figures - true, int(called.sum()) - true))


def _drawn(scores: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of candidates, one of each of `count` equal parts of the ranks."""
    ranks = min(len(scores), max(2 * int((scores >= 0.5).sum()), LEAST_RANKS))
    edges = np.linspace(0, ranks, count + 1)
    chosen = np.unique(random.uniform(edges[:-1], edges[1:]).astype(np.int64))
    return np.argsort(-scores, kind="stable")[chosen]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASES]", help="folders of labelled fields")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="of midog predict")
    parser.add_argument("--draws", type=int, default=100, metavar="N", help="of each row (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(simulate, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
