"""python -m midog tune: the operating point and the calibration of a system, from predictions on a validation set.

The threshold is chosen on all images; how good such a choice is, is measured by
cross-validation over images: for each fold it is chosen on the other folds.
Then model.yaml gets a calibration that puts the threshold at .5, where classes
are named: P' = sigmoid(scale x (logit(P) - logit(threshold))), its scale from
Platt's scaling.

P is what the system predicts today, so the new calibration is composed with the
present one. For a single network (a detector alone, or one classifier) that is
exact (and for a detector of several members, whose calibration follows their
fusion): its scale becomes scale' x scale, its shift scale' x shift + shift', and
the detector's score beside a classifier gets scale' times its weight.
An ensemble averages its members' probabilities after their calibration, and
model.yaml has no calibration of the average. The same shift on every member is
exact only where the members agree (or the threshold is .5 already), and a scale
would reorder crops. So members of an ensemble are given the shift alone, a
warning says so, and a second round of predict and tune shows and takes away
what is left: it changes nothing once the best threshold is .5.
"""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from midog import job, metrics
from midog.errors import UserError
from midog.evaluate import read_cases, read_ground_truth
from midog.system import Calibration, load_system

FOLDS = 5
SEED = 0
LOGIT_LIMIT = 1e-6  # as midog.classify.Calibrated
BELOW_THE_LOWEST = 0.1  # logit; a threshold that lets every prediction in
OBJECTIVES = {1: ("f1",), 2: ("ba", "f1")}  # by track, what ranks it first
NAMES = {"f1": "F1", "ba": "balanced accuracy"}


def logit(probabilities):
    """float64, finite for 0 and 1 as well."""
    clipped = np.clip(np.asarray(probabilities, np.float64), LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    return np.log(clipped / (1 - clipped))


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


class Objective:
    """What the threshold is to maximise, from counts of true and of all positives.

    Args:
        name: "f1" or "ba", balanced accuracy, which needs negatives and so Track 2's cases.
    """

    def __init__(self, name):
        self.name = name

    def of_counts(self, true, positives, figures, predictions):
        """The objective.

        Args:
            true: true positives, int or int (K,).
            positives: predictions from the threshold on, likewise.
            figures: to be found, int.
            predictions: in all, int.
        """
        false = positives - true
        if self.name == "f1":
            return metrics.f1(true, figures - true, false)
        return metrics.balanced_accuracy(true, false, figures - true, predictions - figures - false)

    def curve(self, cases):
        """Thresholds float64 (K + 1,), falling, midway (in logits) between neighbouring scores, and the objective."""
        points = metrics.operating_points(cases)
        scores = logit(points.scores)
        middles = (scores[:-1] + scores[1:]) / 2
        highest, lowest = scores[0] + BELOW_THE_LOWEST, scores[-1] - BELOW_THE_LOWEST
        thresholds = sigmoid(np.concatenate([[highest], middles, [lowest]]))
        true, positives = np.append(0, points.true), np.append(0, points.all)
        return thresholds, self.of_counts(true, positives, *_totals(cases))

    def best_threshold(self, cases):
        """The threshold of the highest objective; of equally good ones the middle one."""
        thresholds, values = self.curve(cases)
        best = np.flatnonzero(values == values.max())
        return float(thresholds[best[(len(best) - 1) // 2]])

    def counts(self, case, threshold):
        """int (4,): the arguments of `of_counts` for one image."""
        return np.array([*metrics.counts_at(metrics.operating_points([case]), threshold), *_totals([case])])

    def at(self, cases, threshold):
        return float(self.of_counts(*sum(self.counts(case, threshold) for case in cases)))


def _totals(cases):
    return sum(case.positives for case in cases), sum(len(case.scores) for case in cases)


def platt(cases):
    """Platt's scaling with balanced classes: (scale, shift) for sigmoid(scale x logit(p) + shift).

    Mildly regularised, so that a few figures that happen to be separable do not make it a step.
    """
    from sklearn.linear_model import LogisticRegression

    scores, positive = metrics.scores_and_labels(cases)
    model = LogisticRegression(class_weight="balanced").fit(logit(scores)[:, None], positive)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def fit(cases, objective, with_scale):
    """The new calibration from some cases.

    Args:
        cases: `midog.metrics.DetectionCase`s or `StackCase`s.
        objective: `Objective`.
        with_scale: False keeps the scale 1.

    Returns:
        threshold, scale, shift: floats.
    """
    threshold = objective.best_threshold(cases)
    scale = round(platt(cases)[0], 6) if with_scale else 1.0
    return threshold, scale, round(-scale * float(logit(threshold)), 6)


def folds_of(count):
    """Fold of each of `count` images, int (count,), drawn with a fixed seed."""
    return np.random.default_rng(SEED).permutation(count) % min(FOLDS, count)


def cross_validate(cases, objective, with_scale):
    """Choose on the other folds, judge on the held-out one.

    Returns:
        counts: int (images, 4), arguments of `Objective.of_counts` at the others' threshold.
        thresholds: list of float, one a fold.
        probabilities: float64 (N,), every prediction under the others' calibration, in the order of the cases.
    """
    folds = folds_of(len(cases))
    counts, probabilities, thresholds = [None] * len(cases), [None] * len(cases), []
    for fold in range(folds.max() + 1):
        others = [case for case, mine in zip(cases, folds == fold, strict=True) if not mine]
        if not _has_both(others):
            raise UserError(
                "the images are too few: without those of one fold no figure, or nothing but figures, is left; "
                "tune on more images"
            )
        threshold, scale, shift = fit(others, objective, with_scale)
        thresholds.append(threshold)
        for number in np.flatnonzero(folds == fold):
            counts[number] = objective.counts(cases[number], threshold)
            probabilities[number] = sigmoid(scale * logit(cases[number].scores) + shift)
    return np.array(counts), thresholds, np.concatenate(probabilities)


def _has_both(cases):
    if not cases:
        return False
    _, positive = metrics.scores_and_labels(cases)
    return bool(positive.any() and not positive.all())


def reliability_weights(cases, threshold):
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
    scale, shift = platt(cases)
    odds = math.exp(scale * float(logit(threshold)) + shift)
    return np.where(positive, 1 / (2 * positive.mean() * odds), 1 / (2 * (1 - positive.mean())))


# --- model.yaml ---------------------------------------------------------------


def calibrated_parts(values):
    """The entries of model.yaml whose calibration makes the probability: name and mapping, in the file's order."""
    if values["members"]:
        return {f"members[{number}]": member for number, member in enumerate(values["members"])}
    return {"detector": values["detector"]}


def compose(present, scale, shift):
    """A calibration, mapping with `scale` and `shift`, followed by another one."""
    return {"scale": round(scale * present["scale"], 6), "shift": round(scale * present["shift"] + shift, 6)}


def write_calibration(folder, scale, shift, note):
    """Change the calibration in model.yaml and note why; all else stays, in its order.

    Args:
        folder: of the system.
        scale, shift: of the calibration that follows the present one.
        note: mapping for `metrics.tuned`.

    Returns:
        dict from a part's name to its mappings before and after.

    Raises:
        UserError: the file cannot be written, or does not load any more; it is as before then.
    """
    import yaml

    path, part = folder / "model.yaml", folder / "model.yaml.part"
    before = path.read_bytes()
    values = yaml.safe_load(before)
    changes = {}
    for name, entry in calibrated_parts(values).items():
        present = asdict(Calibration(**entry["calibration"]))
        entry["calibration"] = compose(present, scale, shift)
        changes[name] = present, entry["calibration"]
    if values["members"] and "detector" in values:
        values["detector"]["score_weight"] = round(scale * values["detector"]["score_weight"], 6)
    values["metrics"]["tuned"] = note
    try:
        part.write_text(yaml.safe_dump(values, sort_keys=False))
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); tune a copy of the model") from None
    try:
        load_system(folder)
    except UserError:
        part.write_bytes(before)
        part.replace(path)
        raise
    return changes


# --- the command --------------------------------------------------------------


def run(arguments, log, warn):
    """Choose, measure, print, write model.yaml, and tuning.json with plots where --out says.

    Args:
        arguments: track, ground_truth, predictions, model, objective and out of the command line.
        log, warn: called with one line each.
    """
    track, folder, out = arguments.track, Path(arguments.model), arguments.out
    system = load_system(folder)
    if system.track != track:
        raise UserError(f"{folder}: a system for Track {system.track}; give one for Track {track}")
    name = arguments.objective or OBJECTIVES[track][0]
    if name not in OBJECTIVES[track]:
        raise UserError("--objective ba: Track 1 counts no true negatives; leave it out, F1 is tuned")
    objective = Objective(name)
    truths = read_ground_truth(arguments.ground_truth, track)
    cases = read_cases(track, truths, arguments.predictions, warn)
    if out:
        job.check_writable(out)
    figures, predictions = _totals(cases)
    if len(cases) < 2 or not _has_both(cases):
        raise UserError(
            f"{arguments.predictions}: {len(cases)} images, {predictions} predictions, {figures} positives in the "
            "ground truth; predictions of both kinds on at least two images are needed"
        )
    single = len(system.members) <= 1
    try:
        counts, thresholds, probabilities = cross_validate(cases, objective, single)
    except UserError as error:
        raise UserError(f"{arguments.ground_truth}: {error}") from None
    threshold, scale, shift = fit(cases, objective, single)
    if scale <= 0:
        raise UserError(
            f"{arguments.predictions}: probabilities are no higher for figures than for the rest; "
            "is this their own ground truth?"
        )
    interval = metrics.bootstrap_by_image(counts, objective.of_counts, seed=SEED)
    found = {
        "objective": name,
        "images": len(cases),
        "threshold": round(threshold, 4),
        "cross_validated": round(float(objective.of_counts(*counts.sum(axis=0))), 4),
        "interval_95": [round(bound, 4) for bound in interval],
    }
    before = objective.at(cases, 0.5)
    weights = reliability_weights(cases, threshold)
    scores, positive = metrics.scores_and_labels(cases)
    errors = [metrics.calibration_errors(values, positive, weights) for values in (scores, probabilities)]
    _print_found(track, objective, cases, found, before, thresholds, threshold, errors, log)
    if found["cross_validated"] <= before:
        warn("cross-validated, the new threshold is no better than .5 as it is: more images may be needed")
    if not single:
        warn(
            f"{folder}: an ensemble of {len(system.members)}: the shift on each member is approximate; "
            "run predict and tune once more until the threshold is .5"
        )
    for part, (old, new) in write_calibration(folder, scale, shift, found).items():
        log(f"{part}: scale {old['scale']:g} -> {new['scale']:g}, shift {old['shift']:g} -> {new['shift']:g}")
    log(f"calibration {folder / 'model.yaml'}")
    if out:
        _write_out(out, objective, cases, found, threshold, (scores, probabilities), positive, weights, log)


def _print_found(track, objective, cases, found, before, thresholds, threshold, errors, log):
    figures, predictions = _totals(cases)
    name = NAMES[objective.name]
    unit = {1: "images", 2: "stacks"}[track]
    log(f"{len(cases)} {unit}, {figures} positives in the ground truth, {predictions} predictions")
    by_fold = ", ".join(f"{each:.4f}" for each in thresholds)
    log(f"threshold {threshold:.4f} of the present probability; by fold {by_fold}")
    log(f"{name} at .5 as it is           {before:.4f}")
    log(
        f"{name} cross-validated          {found['cross_validated']:.4f}, 95 % interval "
        "{:.4f} to {:.4f}, bootstrap by {}".format(*found["interval_95"], unit.removesuffix("s"))
    )
    log(f"{name} at the threshold, on all {objective.at(cases, threshold):.4f} (chosen on the same images: optimistic)")
    (old_ece, old_brier), (new_ece, new_brier) = errors
    log(
        f"reliability before and after, cross-validated, at the operating point's odds: "
        f"expected calibration error {old_ece:.4f} -> {new_ece:.4f}, Brier score {old_brier:.4f} -> {new_brier:.4f}"
    )


def _write_out(out, objective, cases, found, threshold, probabilities, positive, weights, log):
    from midog.report.curves import draw_reliability, draw_threshold, write_plot

    job.write_result(out / "tuning.json", found)
    versions = dict(zip(("before", "after, cross-validated"), probabilities, strict=True))
    name = NAMES[objective.name]
    log(f"figures {out / 'tuning.json'}")
    log(f"plot {write_plot(out / 'reliability.png', draw_reliability, versions, positive, weights)}")
    log(f"plot {write_plot(out / 'threshold.png', draw_threshold, *objective.curve(cases), threshold, name)}")
