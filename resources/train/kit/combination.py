"""Two stages' predictions taken apart, into the classifier's and the detector's part, and put together otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from midog.calibration import logit, sigmoid
from midog.engine.two_stages import with_score
from midog.errors import UserError
from midog.evaluation import metrics
from midog.evaluation.metrics import DetectionCase

Parts = tuple[NDArray[np.float64], NDArray[np.float64]]


def apart(two_stages: DetectionCase, detector: DetectionCase, weight: float) -> Parts:
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


def together(cases: Sequence[DetectionCase], parts: Sequence[Parts], weight: float) -> list[DetectionCase]:
    """The predictions of images with another weight of the detector."""
    return [_with(case, with_score(*each, weight)) for case, each in zip(cases, parts, strict=True)]


def _with(case: DetectionCase, probabilities: NDArray[np.floating]) -> DetectionCase:
    return replace(case, detections=case.detections.with_probabilities(probabilities).best_first())


def figures_of(cases: Sequence[DetectionCase], areas: Mapping[str, float]) -> tuple[float, str]:
    """Average precision, and a line with it, the best F1 and what goes with that.

    Args:
        cases: images, tissue without figures among them.
        areas: mm2 by image.
    """
    points = metrics.operating_points(cases)
    figures = sum(case.positives for case in cases)
    f1 = np.asarray(metrics.f1(points.true, figures - points.true, points.all - points.true))
    best = int(np.argmax(f1))
    accepted = [_with(case, (case.scores >= points.scores[best]).astype(float)) for case in cases]
    low, high = metrics.bootstrap_by_image([case.counts for case in accepted], metrics.f1)
    quiet = [case for case in accepted if not case.positives]
    false = sum(case.counts.false_positives for case in quiet)
    area = sum(areas[case.image] for case in quiet)
    precision = metrics.detection_figures(cases)["AP"]
    return precision, (
        f"AP {precision:.4f}  F1 {f1[best]:.4f} ({low:.4f} to {high:.4f})  recall {points.true[best] / figures:.4f}  "
        f"FP/mm2 without figures {false / area if area else np.nan:.2f}"
    )
