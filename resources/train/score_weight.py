"""Choose how much a two-stage system's detector counts beside its classifier, from predictions out of fold.

    python -m resources.train.score_weight --data DIR ... --detector RUNS1/out_of_fold --two-stages RUNS2 --system NAME

RUNS1 and RUNS2 are what `python -m resources.train.folds` made of the detector and of the second stage behind it: the
candidates are the same, and the classifier's logit is what remains of a prediction without the detector's part. Of each
weight in logit(p) + weight x logit(score) the average precision and the best F1 are printed, each with its false
positives a mm2 of tissue without figures; that of the highest average precision is put into RUNS2/model/NAME/model.yaml
and RUNS2/out_of_fold is written anew with it. Then `midog tune --predictions RUNS2/out_of_fold` chooses the threshold.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog import job
from midog.calibration import logit, sigmoid
from midog.engine.two_stages import with_score
from midog.errors import UserError, exit_code
from midog.evaluation import metrics
from midog.evaluation.cases import read_cases
from midog.evaluation.labelled import extents, read_labelled
from midog.evaluation.metrics import DetectionCase
from midog.files import read_yaml, write_json, write_yaml
from midog.system import load_system

logger = logging.getLogger("resources.train.score_weight")

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE]", help="fields, and quiet tissue")
    parser.add_argument("--detector", type=Path, required=True, metavar="DIR", help="the detector's out_of_fold")
    parser.add_argument("--two-stages", type=Path, required=True, metavar="DIR", help="--out of the second stage")
    parser.add_argument("--system", required=True, metavar="NAME", help="in DIR/model")
    return parser.parse_args(argv)


def apart(two_stages: DetectionCase, detector: DetectionCase, weight: float) -> tuple[NDArray, NDArray]:
    """The classifier's and the detector's probabilities of the candidates of an image, float64 (N,) each.

    Args:
        two_stages, detector: of the same image.
        weight: that was used.

    Raises:
        UserError: a candidate is not the detector's.
    """
    scores = {tuple(place): score for place, score in zip(detector.points.tolist(), detector.scores, strict=True)}
    try:
        own = np.array([scores[tuple(place)] for place in two_stages.points.tolist()])
    except KeyError:
        raise UserError(
            f"{two_stages.image}: a candidate of two stages is none of the detector's; give predictions of the "
            "detector that stands in the two stages"
        ) from None
    return sigmoid(logit(two_stages.scores) - weight * logit(own)), own


def choose(arguments: argparse.Namespace) -> None:
    folder = arguments.two_stages / "model" / arguments.system
    system = load_system(folder)
    if system.classifier is None:
        raise UserError(f"{folder}: has no second stage; give one that resources.train.folds candidates made")
    labelled = read_labelled(1, arguments.data)
    predictions = arguments.two_stages / "out_of_fold"
    both = [read_cases(1, labelled.truths, each, chosen=True)[0] for each in (predictions, arguments.detector)]
    second, first = ([each for each in cases if isinstance(each, DetectionCase)] for cases in both)
    areas = {image: extent.mm2 for image, extent in extents(labelled.items).items()}
    parts = [apart(two, one, system.classifier.score_weight) for two, one in zip(second, first, strict=True)]
    versions = {
        f"weight {weight:g}": [
            _with(case, with_score(classifier, detector, weight))
            for case, (classifier, detector) in zip(second, parts, strict=True)
        ]
        for weight in WEIGHTS
    }
    versions["detector alone"] = first
    precision = {}
    for name, cases in versions.items():
        precision[name], line = figures_of(cases, areas)
        logger.info(f"{name:15} {line}")
    best = max(WEIGHTS, key=lambda weight: precision[f"weight {weight:g}"])
    values = read_yaml(folder / "model.yaml")
    values["classifier"]["score_weight"] = best
    write_yaml(folder / "model.yaml", values)
    for case in versions[f"weight {best:g}"]:
        write_json(predictions / case.image / job.RESULT_NAMES[1], case.detections.to_json())
    logger.info(f"weight {best:g} in {folder / 'model.yaml'} and {predictions}; choose the threshold with midog tune")


def _with(case: DetectionCase, probabilities: NDArray) -> DetectionCase:
    return replace(case, detections=case.detections.with_probabilities(probabilities))


def figures_of(cases: Sequence[DetectionCase], areas: dict[str, float]) -> tuple[float, str]:
    """Average precision, and a line with it, the best F1 and what stands beside it."""
    points = metrics.operating_points(cases)
    figures = sum(case.positives for case in cases)
    f1 = np.asarray(metrics.f1(points.true, figures - points.true, points.all - points.true))
    best = int(np.argmax(f1))
    accepted = [_with(case, np.where(case.scores >= points.scores[best], 1.0, 0.0)) for case in cases]
    low, high = metrics.bootstrap_by_image(np.array([case.counts for case in accepted]), metrics.f1)
    quiet = [case for case in accepted if not case.positives]
    false = sum(case.counts.false_positives for case in quiet)
    area = sum(areas[case.image] for case in quiet)
    precision = metrics.detection_figures(cases)["AP"]
    return precision, (
        f"AP {precision:.4f}  F1 {f1[best]:.4f} ({low:.4f} to {high:.4f})  recall {points.true[best] / figures:.4f}  "
        f"FP/mm2 without figures {false / area if area else np.nan:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(choose, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
