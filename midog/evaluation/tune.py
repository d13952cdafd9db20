"""python -m midog tune: the operating point and the calibration of a system, from predictions on a validation set.

The threshold is chosen on all images; how good such a choice is, is measured by
cross-validation over images: for each fold it is chosen on the other folds.
Then model.yaml gets a calibration that puts the threshold at .5, where classes
are named: P' = sigmoid(scale x (logit(P) - logit(threshold))), its scale from
Platt's scaling. On what a training of Track 2 held out, the recipe's rule
chooses both (`midog.evaluation.operating_point`). Beside it stands how often a
candidate of such a probability is a figure, cross-validated, too.

P is what the system predicts today, after the last calibration of model.yaml:
that of the classifier's mean over its members or, without a classifier, that of
the detector's score. So the new one is composed with it, which is exact however
many members there are; the detector's score beside a classifier, which is added
after that calibration, gets the scale times its weight.
"""

import logging
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from midog.calibration import BEYOND, Calibration, logit, platt, shift_to_half, sigmoid
from midog.errors import UserError
from midog.evaluation import metrics
from midog.evaluation.held_out import rule_in
from midog.evaluation.inputs import Inputs, held_out_cases, read_inputs
from midog.evaluation.metrics import Case, DetectionCase, Floats, Mask, Number, StackCase
from midog.evaluation.operating_point import Rule, fit_calibration
from midog.files import check_writable, read_yaml, write_file, write_json, write_yaml
from midog.job import RESULT_NAMES
from midog.system import System, load_system

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

FOLDS = 5
SEED = 0
OBJECTIVES = {1: ("f1",), 2: ("ba", "f1")}  # by track, what ranks it first
NAMES = {"f1": "F1", "ba": "balanced accuracy"}


class Objective:
    """What the threshold is to maximise, from counts of true and of all positives.

    Args:
        name: "f1" or "ba", balanced accuracy, which needs negatives and so Track 2's cases.
        rule: of `midog.evaluation.operating_point`; "pooled" maximises over all cases together, whatever their domains.
    """

    def __init__(self, name: str, rule: Rule = "pooled") -> None:
        self.name, self.rule = name, rule

    def of_counts(self, true: Number, positives: Number, figures: Number, predictions: Number) -> Number:
        """The objective.

        Args:
            true: true positives, int or int (K,).
            positives: predictions from the threshold on, likewise.
            figures: to be found, likewise.
            predictions: in all, likewise.
        """
        false = positives - true
        if self.name == "f1":
            return metrics.f1(true, figures - true, false)
        return metrics.balanced_accuracy(true, false, figures - true, predictions - figures - false)

    def curve(self, cases: Sequence[Case]) -> tuple[Floats, Floats]:
        """Thresholds float64 (K + 1,), falling, midway (in logits) between neighbouring scores, and the objective."""
        points = metrics.operating_points(cases)
        scores = logit(points.scores)
        scores = np.concatenate([[scores[0] + 2 * BEYOND], scores, [scores[-1] - 2 * BEYOND]])
        true, positives = np.append(0, points.true), np.append(0, points.all)
        values = np.asarray(self.of_counts(true, positives, *_totals(cases)), np.float64)
        return sigmoid((scores[:-1] + scores[1:]) / 2), values

    def best_threshold(self, cases: Sequence[Case]) -> float:
        """The threshold of the highest objective; of equally good ones the middle one."""
        thresholds, values = self.curve(cases)
        best = np.flatnonzero(values == values.max())
        return float(thresholds[best[(len(best) - 1) // 2]])

    def counts(self, case: Case, threshold: float) -> NDArray[np.int64]:
        """(4,): the arguments of `of_counts` for one image."""
        return np.array([*metrics.counts_at(metrics.operating_points([case]), threshold), *_totals([case])])

    def at(self, cases: Sequence[Case], threshold: float) -> float:
        return float(self.of_counts(*np.sum([self.counts(case, threshold) for case in cases], axis=0)))


def _totals(cases: Sequence[Case]) -> tuple[int, int]:
    return sum(case.positives for case in cases), sum(len(case.scores) for case in cases)


def fit(cases: Sequence[Case], objective: Objective) -> tuple[float, Calibration]:
    """The threshold from some cases, and the calibration that puts it at .5.

    Raises:
        UserError: probabilities say nothing.
    """
    scale = _platt(cases).scale
    if objective.rule == "pooled":
        threshold = objective.best_threshold(cases)
        return threshold, Calibration(scale, scale * shift_to_half(threshold))
    calibration = fit_calibration(_crops(cast("Sequence[StackCase]", cases)), objective.rule)
    return float(sigmoid(-calibration.shift / calibration.scale)), calibration


def _crops(cases: "Sequence[StackCase]") -> "pd.DataFrame":
    """The pages of all cases, with label, domain and raw."""
    import pandas as pd

    pages = metrics.pooled(cases)
    return pd.DataFrame({"label": pages.labels.astype(int), "domain": pages.domains, "raw": pages.scores})


def _platt(cases: Sequence[Case]) -> Calibration:
    try:
        return platt(*metrics.scores_and_labels(cases))
    except ValueError:
        raise UserError(
            "probabilities are no higher for figures than for the rest; is this their own ground truth?"
        ) from None


def folds_of(count: int) -> NDArray[np.int64]:
    """Fold of each of `count` images, int (count,), drawn with a fixed seed."""
    return np.random.default_rng(SEED).permutation(count) % min(FOLDS, count)


def cross_validate(cases: Sequence[Case], objective: Objective) -> tuple[NDArray[np.int64], list[float], Floats]:
    """Choose on the other folds, judge on the held-out one.

    Returns:
        counts: int (images, 4), arguments of `Objective.of_counts` at the others' threshold.
        thresholds: one a fold.
        probabilities: float64 (N,), every prediction under the others' calibration, in the order of the cases.

    Raises:
        UserError: the images are too few, or probabilities say nothing.
    """
    folds = folds_of(len(cases))
    others = [
        [case for case, other in zip(cases, folds != fold, strict=True) if other] for fold in range(folds.max() + 1)
    ]
    if not all(_has_both(chosen) for chosen in others):
        raise UserError(
            "the images are too few: without those of one fold no figure, or nothing but figures, is left; "
            "tune on more images"
        )
    fits = [fit(chosen, objective) for chosen in others]
    counts, probabilities = [], []
    for case, fold in zip(cases, folds, strict=True):
        threshold, calibration = fits[fold]
        counts.append(objective.counts(case, threshold))
        probabilities.append(calibration.apply(case.scores))
    return np.array(counts), [threshold for threshold, _ in fits], np.concatenate(probabilities)


def _has_both(cases: Sequence[Case]) -> bool:
    if not cases:
        return False
    _, positive = metrics.scores_and_labels(cases)
    return bool(positive.any() and not positive.all())


def reliability_weights(cases: Sequence[Case], threshold: float) -> Floats:
    """Weights of all predictions that make the threshold the place where both classes weigh the same.

    A probability of .5 at an operating point is not the frequency of figures there: F1, for one, is best where fewer
    than half of the candidates are. Reliability is measured at the odds that the operating point implies.

    Args:
        cases: as `fit`.
        threshold: of the present probability.

    Returns:
        float64 (N,), in the order of the cases.
    """
    _, positive = metrics.scores_and_labels(cases)
    balanced = _platt(cases)
    odds = math.exp(balanced.scale * float(logit(threshold)) + balanced.shift)
    return np.where(positive, 1 / (2 * positive.mean() * odds), 1 / (2 * (1 - positive.mean())))


def reliability(probabilities: Floats, positive: Mask) -> list[tuple[float, float, int]]:
    """What a probability means on the validation set: the plain share of figures, whatever the operating point.

    Args:
        probabilities: float64 (N,), cross-validated.
        positive: bool (N,), which are figures.

    Returns:
        For each of ten bins of equal width that holds points: their mean probability, the share of figures among them,
        and their number.
    """
    count = len(positive)
    predicted, observed, fraction = metrics.reliability_bins(probabilities, positive, np.ones(count))
    points = np.rint(fraction * count).astype(int)
    return list(zip(predicted.round(4).tolist(), observed.round(4).tolist(), points.tolist(), strict=True))


# --- model.yaml ---------------------------------------------------------------


def write_calibration(
    system: System, calibration: Calibration, note: dict[str, Any], bins: Sequence[tuple[float, float, int]]
) -> tuple[str, Calibration, Calibration]:
    """Change the last calibration in model.yaml and note why, and what it is worth; all else stays, in its order.

    Args:
        system: as `load_system` read it.
        calibration: follows the present one.
        note: mapping for `made.metrics.tuned`.
        bins: of `reliability`, for `made.reliability`.

    Returns:
        The part of the system whose calibration it is, and that before and after. Nothing is rounded, so that no
        candidate changes sides.

    Raises:
        UserError: the file cannot be written, or does not load any more; it is as before then.
    """
    path = system.folder / "model.yaml"
    before, values = path.read_bytes(), read_yaml(path)
    if system.classifier:
        part, present = "classifier", system.classifier.calibration
        if system.classifier.score_weight:
            values[part]["score_weight"] = calibration.scale * system.classifier.score_weight
    else:
        assert system.detector
        part, present = "detector", system.detector.calibration
    after = present.then(calibration)
    values[part]["calibration"] = {"scale": after.scale, "shift": after.shift}
    made = values.setdefault("made", {})
    made.setdefault("metrics", {})["tuned"] = note
    made["reliability"] = [list(each) for each in bins]
    write_yaml(path, values)
    try:
        load_system(system.folder)
    except UserError:
        write_file(path, before)
        raise
    return part, present, after


# --- the command --------------------------------------------------------------


def run(arguments: Namespace) -> None:
    """Choose, measure, log, write model.yaml, and tuning.json with plots where --out says.

    Args:
        arguments: of `midog.evaluation.inputs.add_arguments`, and model, objective and out.
    """
    track, folder, out = arguments.track, Path(arguments.model), arguments.out
    system = load_system(folder)
    if system.track != track:
        raise UserError(f"{folder}: a system for Track {system.track}; give one for Track {track}")
    name = arguments.objective or OBJECTIVES[track][0]
    if name not in OBJECTIVES[track]:
        raise UserError("--objective ba: Track 1 counts no true negatives; leave it out, F1 is tuned")
    objective = Objective(name)
    if arguments.folds:
        training, *more = arguments.folds
        if track == 1 or arguments.predictions or arguments.split or arguments.fold:
            raise UserError(
                f"{training}: --folds is for Track 2 and has the predictions; "
                "leave --predictions, --split and --fold out"
            )
        if more:
            raise UserError(f"{more[0]}: tune takes one training; give --folds the one that exported {folder}")
        inputs = Inputs(held_out_cases(training, system), [], str(training))
        if not arguments.objective:
            objective = Objective(name, rule_in(system.training, folder / "model.yaml", "classifier"))
    else:
        inputs = read_inputs(arguments, folder.resolve().parent, folder.resolve().name)
    cases = inputs.cases
    for text in inputs.remarks:
        logger.warning(text)
    for text in inputs.notes:
        logger.info(text)
    if out:
        check_writable(out, "--out")
    figures, predictions = _totals(cases)
    if len(cases) < 2 or not _has_both(cases):
        raise UserError(
            f"{inputs.source}: {len(cases)} images, {predictions} predictions, {figures} positives in the "
            "ground truth; predictions of both kinds on at least two images are needed"
        )
    try:
        counts, thresholds, probabilities = cross_validate(cases, objective)
        threshold, calibration = fit(cases, objective)
    except UserError as error:
        raise UserError(f"{inputs.source}: {error}") from None
    interval = metrics.bootstrap_by_image(counts, objective.of_counts, seed=SEED)
    cross_validated = round(float(objective.of_counts(*counts.sum(axis=0))), 4)
    found: dict[str, Any] = {
        "objective": name,
        "images": len(cases),
        "threshold": round(threshold, 4),
        "cross_validated": cross_validated,
        "interval_95": [round(bound, 4) for bound in interval],
    }
    if track == 2:
        found["operating_point"] = objective.rule
    before = objective.at(cases, 0.5)
    weights = reliability_weights(cases, threshold)
    scores, positive = metrics.scores_and_labels(cases)
    errors = [metrics.calibration_errors(values, positive, weights) for values in (scores, probabilities)]
    _log_found(track, objective, cases, found, before, thresholds, threshold, errors)
    if cross_validated <= before:
        logger.warning("cross-validated, the new threshold is no better than .5 as it is: more images may be needed")
    part, old, new = write_calibration(system, calibration, found, reliability(probabilities, positive))
    logger.info(f"{part}: scale {old.scale:g} -> {new.scale:g}, shift {old.shift:g} -> {new.shift:g}")
    logger.info(f"calibration {folder / 'model.yaml'}")
    if out:
        versions = {"before": scores, "after, cross-validated": probabilities}
        _write_out(out, objective, cases, found, threshold, versions, positive, weights)
        if track == 1:
            _write_predictions(out / "predictions", cast("Sequence[DetectionCase]", cases), probabilities)


def _log_found(
    track: int,
    objective: Objective,
    cases: Sequence[Case],
    found: dict[str, Any],
    before: float,
    thresholds: list[float],
    threshold: float,
    errors: list[tuple[float, float]],
) -> None:
    figures, predictions = _totals(cases)
    name = NAMES[objective.name]
    unit = {1: "images", 2: "stacks"}[track]
    logger.info(f"{len(cases)} {unit}, {figures} positives in the ground truth, {predictions} predictions")
    by_fold = ", ".join(f"{each:.4f}" for each in thresholds)
    rule = f", operating point {found['operating_point']}" if track == 2 else ""
    logger.info(f"threshold {threshold:.4f} of the present probability{rule}; by fold {by_fold}")
    logger.info(f"{name} at .5 as it is           {before:.4f}")
    logger.info(
        f"{name} cross-validated          {found['cross_validated']:.4f}, 95 % interval "
        "{:.4f} to {:.4f}, bootstrap by {}".format(*found["interval_95"], unit.removesuffix("s"))
    )
    best = objective.at(cases, threshold)
    logger.info(f"{name} at the threshold, on all {best:.4f} (chosen on the same images: optimistic)")
    (old_ece, old_brier), (new_ece, new_brier) = errors
    logger.info(
        f"reliability before and after, cross-validated, at the operating point's odds: "
        f"expected calibration error {old_ece:.4f} -> {new_ece:.4f}, Brier score {old_brier:.4f} -> {new_brier:.4f}"
    )


def _write_out(
    out: Path,
    objective: Objective,
    cases: Sequence[Case],
    found: dict[str, Any],
    threshold: float,
    versions: Mapping[str, Floats],
    positive: Mask,
    weights: Floats,
) -> None:
    from midog.evaluation.curves import draw_reliability, draw_threshold, write_plot

    name = NAMES[objective.name]
    logger.info(f"figures {write_json(out / 'tuning.json', found)}")
    logger.info(f"plot {write_plot(out / 'reliability.png', draw_reliability, versions, positive, weights)}")
    curve = objective.curve(cases)
    logger.info(f"plot {write_plot(out / 'threshold.png', draw_threshold, *curve, threshold, name)}")


def _write_predictions(out: Path, cases: Sequence[DetectionCase], probabilities: Floats) -> None:
    """Each image's result under the others' calibration, for `midog evaluate --predictions`: honest figures by set."""
    ends = np.cumsum([len(case.scores) for case in cases])
    for case, own in zip(cases, np.split(probabilities, ends[:-1]), strict=True):
        check_writable(out / case.image)
        write_json(out / case.image / RESULT_NAMES[1], case.detections.with_probabilities(own).to_json())
    logger.info(f"predictions, each under a threshold that other images chose: {out}")
