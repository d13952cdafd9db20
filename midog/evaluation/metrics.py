"""The organisers' metrics, number for number, from cases that were checked before.

Track 1 counts with `score_detection` of evalutils, its average precision comes
from torchmetrics; Track 2 counts classes, its ROC AUC comes from scikit-learn.
(DeepMicroscopy, MIDOG25_T1_evaluation_docker and MIDOG25_T2_evaluation_docker,
evaluate.py.) Both kinds of case can also be counted at any other threshold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.calibration import LOGIT_LIMIT, between
from midog.detections import Detections
from midog.errors import not_installed

MATCH_UM = 7.5  # the challenge's distance of a match
MATCH_MM = MATCH_UM / 1000
HALF_SIDE_MM = 0.01125  # of the square around a point: neighbours at 7.5 um along an axis have an IoU of 0.5
ROI_TYPES = ("hotspot", "challenging", "random")
SAME_MM = 1e-12  # distances that are equal but for rounding: far below a px, far above it
EPSILON = 1e-6  # the organisers', against division by zero
FROC_THRESHOLDS, FROC_MAX_FALSE, FROC_STEPS = 40, 8, 50
RECALL_STEPS = np.arange(0, 1.01, 0.01).tolist()  # the organisers' 101, rounding errors included

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
Number = float | NDArray[Any]  # one, or one an element: of int or float64


class Steps(NamedTuple):
    """What a falling threshold lets in.

    Attributes:
        scores: float64 (K,), falling, all different.
        true, all: int64 (K,), the true positives, and all positives, that each score adds.
    """

    scores: Floats
    true: Counts
    all: Counts


def _steps(scores: Floats, true_at: Callable[[float], int], needed: Floats) -> Steps:
    """`Steps` from a case's scores.

    Args:
        scores: float64 (N,).
        true_at: function of a threshold: the number of true positives among scores from it on.
        needed: the scores at which that number can change.
    """
    distinct, count = np.unique(scores, return_counts=True)
    true = np.zeros(len(distinct), np.int64)
    known = 0
    for score in np.unique(needed)[::-1]:
        total = true_at(score)
        true[np.searchsorted(distinct, score)] = total - known
        known = total
    return Steps(distinct[::-1], true[::-1], count[::-1])


class DetectionCounts(NamedTuple):
    """By the organisers' names and in their order."""

    true_positives: int
    false_negatives: int
    false_positives: int


@dataclass(frozen=True, eq=False)
class DetectionCase:
    """Track 1: an image, its truth and what was predicted for it.

    Attributes:
        image: its name.
        domain: tumour domain, a number or a text.
        roi_type: one of `ROI_TYPES`.
        truths: float64 (T, 3), mm, in the order of the ground truth, which decides ties of the matching.
        detections: in the order of the prediction, accepted or not.
    """

    image: str
    domain: float | str
    roi_type: str
    truths: Floats
    detections: Detections

    @cached_property
    def points(self) -> Floats:
        """(N, 3), mm; z is 0."""
        return np.pad(self.detections.points_mm, ((0, 0), (0, 1)))

    @property
    def accepted(self) -> Mask:
        """(N,), the points named "mitotic figure"."""
        return self.detections.accepted

    @property
    def scores(self) -> Floats:
        """(N,), `probability`."""
        return self.detections.probabilities

    @property
    def positives(self) -> int:
        return len(self.truths)

    @cached_property
    def counts(self) -> DetectionCounts:
        """Of the accepted points."""
        return self.counts_of(self.accepted)

    def counts_of(self, allowed: Mask) -> DetectionCounts:
        """The counts of `score_detection` when only some points are there.

        Args:
            allowed: bool (N,).
        """
        from evalutils.scorers import score_detection

        found = self.points[allowed].tolist()
        return DetectionCounts(*score_detection(ground_truth=self.truths.tolist(), predictions=found, radius=MATCH_MM))

    def true_from(self, threshold: float) -> int:
        """True positives of `score_detection` among the points with a score from a threshold on."""
        allowed = self.scores >= threshold
        count = int(allowed.sum())  # tells which points these are
        if count not in self._true:
            self._true[count] = self.counts_of(allowed).true_positives
        return self._true[count]

    @cached_property
    def _true(self) -> dict[int, int]:
        """What `true_from` has counted, by the number of points."""
        return {}

    def _hits(self, allowed: Mask, radius: float = MATCH_MM) -> list[list[int]]:
        """For each truth those of some points that lie within a distance, nearest first, in the scorer's order."""
        if len(self.truths) == 0 or not allowed.any():
            return []
        from evalutils.scorers import find_hits_for_targets

        numbers = np.flatnonzero(allowed)
        hits = find_hits_for_targets(targets=self.truths, predictions=self.points[allowed], radius=radius)
        return [numbers[near].tolist() for near in hits]

    @cached_property
    def _all_hits(self) -> list[list[int]]:
        """Of all points, with those that rounding alone may keep beyond the radius."""
        return self._hits(np.ones(len(self.points), bool), MATCH_MM + SAME_MM)

    @cached_property
    def has_ties(self) -> bool:
        """Whether two points are equally far from a truth that may take either, or one lies just at the radius.

        `score_detection` searches a tree of the points. How that breaks a tie hangs on all points that are in it, so
        their matches at one threshold do not tell those at another.
        """
        truths = np.repeat(np.arange(len(self._all_hits)), [len(near) for near in self._all_hits])
        apart = np.linalg.norm(self.points[self._near] - self.truths[truths], axis=1)
        equal = (np.diff(apart) <= SAME_MM) & (truths[1:] == truths[:-1])
        return bool(equal.any() or (apart >= MATCH_MM - SAME_MM).any())

    @property
    def _near(self) -> Counts:
        """The points of all hits, truth by truth."""
        return np.concatenate([np.zeros(0), *self._all_hits]).astype(np.int64)

    def matched(self, allowed: Mask) -> Mask:
        """The greedy matching of `score_detection` when only some points are there.

        Args:
            allowed: bool (N,).

        Returns:
            bool (N,), the points that a truth took.
        """
        taken = np.zeros(len(allowed), bool)
        points = self._match(self._hits(allowed), allowed)
        taken[points[points >= 0]] = True
        return taken

    @cached_property
    def missed(self) -> Counts:
        """int64 (F,), indices of the truths that no accepted point matched."""
        return np.flatnonzero(self._match(self._hits(self.accepted), self.accepted) < 0)

    def _match(self, hits: list[list[int]], allowed: Mask) -> Counts:
        """int64 (T,), the point that each truth took of its hits that are allowed, or -1."""
        free = allowed.tolist()
        taken = np.full(len(self.truths), -1, np.int64)
        for truth, near in enumerate(hits):
            for point in near:
                if free[point]:
                    free[point] = False
                    taken[truth] = point
                    break
        return taken

    @cached_property
    def steps(self) -> Steps:
        """At a tie, of distances that are equal, the counts are those of one order at all thresholds."""

        def true_at(score: float) -> int:
            return int((self._match(self._all_hits, self.scores >= score) >= 0).sum())

        return _steps(self.scores, true_at, self.scores[self._near])


@dataclass(frozen=True, eq=False)
class StackCase:
    """Track 2: a stack, its labels and what was predicted for it.

    Attributes:
        image: its name.
        domains: (N,), tumour domain of each page.
        labels: bool (N,), True where atypical.
        called: bool (N,), True where the predicted class is "atypical".
        scores: float64 (N,), `confidence`, P(atypical).
    """

    image: str
    domains: NDArray[Any]
    labels: Mask
    called: Mask
    scores: Floats

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(true positives, false positives, false negatives, true negatives)."""
        return confusion(self.labels, self.called)

    def of_domain(self, domain: float | str) -> "StackCase":
        """The pages of one tumour domain."""
        mine = self.domains == domain
        return StackCase(self.image, self.domains[mine], self.labels[mine], self.called[mine], self.scores[mine])

    @cached_property
    def steps(self) -> Steps:
        atypical = self.scores[self.labels]
        return _steps(self.scores, lambda score: int((atypical >= score).sum()), atypical)


Case = DetectionCase | StackCase


# --- matching -----------------------------------------------------------------


def match(truths: ArrayLike, found: ArrayLike, radius: float) -> Counts:
    """One-to-one greedy matching, as the organisers do it; `DetectionCase.matched` is its twin at any threshold.

    Each truth, in order, takes its nearest free point with distance <= radius (evalutils 0.5.0, `score_detection`).
    Not optimal: the order of truths matters. Of points equally near, the first is taken; there the scorer has no rule.

    Args:
        truths: float (N, 2), in any unit.
        found: float (M, 2), same unit.
        radius: same unit.

    Returns:
        int64 (N,), for each truth an index into `found`, or -1.
    """
    targets, points = np.asarray(truths, np.float64), np.asarray(found, np.float64)
    taken = np.full(len(targets), -1, np.int64)
    if len(points) == 0:
        return taken
    free = np.ones(len(points), bool)
    for number, target in enumerate(targets):
        squares = np.where(free, ((points - target) ** 2).sum(axis=1), np.inf)
        nearest = squares.argmin()
        if squares[nearest] <= radius * radius:
            taken[number] = nearest
            free[nearest] = False
    return taken


# --- counts at every threshold ------------------------------------------------


def operating_points(cases: Sequence[Case]) -> Steps:
    """Counts over all cases at every threshold at which they change.

    Where two points are equally far from a figure (`DetectionCase.has_ties`), one order of them holds at every
    threshold; the organisers' may be another at each, and `froc` counts them so.

    Args:
        cases: `DetectionCase`s or `StackCase`s.

    Returns:
        `Steps` whose counts are totals: of the positives with a score from `scores[i]` on.
    """
    joined = [np.concatenate(parts) for parts in zip(*(case.steps for case in cases), strict=True)]
    return _totals(*joined) if joined else Steps(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _totals(scores: Floats, true: Counts, positives: Counts) -> Steps:
    """What several predictions, or groups of them, add at their scores -> totals from each different score on."""
    order = np.argsort(-scores, kind="stable")
    scores, true, positives = scores[order], true[order].cumsum(), positives[order].cumsum()
    last = np.append(scores[1:] != scores[:-1], True) if len(scores) else np.zeros(0, bool)
    return Steps(scores[last], true[last], positives[last])


def best_operating_point(scores: ArrayLike, hits: ArrayLike, truths: int) -> tuple[float, float]:
    """The best F1 that a threshold reaches, and that threshold; equal scores come in together.

    Args:
        scores: float (N,), of candidates, in [0, 1]; those that a `Calibration` cannot tell apart count as equal.
        hits: bool or int (N,), 1 where a candidate is matched to a figure.
        truths: number of figures, found or not.

    Returns:
        F1, and the threshold midway, in logits, between the last accepted and the next candidate.
    """
    clipped = np.clip(np.asarray(scores, np.float64), LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    points = _totals(clipped, np.asarray(hits).astype(np.int64), np.ones(len(clipped), np.int64))
    if not len(clipped) or not points.true[-1]:
        return 0.0, 0.5
    values = 2 * points.true / (points.all + truths)
    best = int(np.argmax(values))
    refused = float(points.scores[best + 1]) if best + 1 < len(values) else None
    return float(values[best]), between(float(points.scores[best]), refused)


def stepwise_average_precision(scores: ArrayLike, hits: ArrayLike, truths: int) -> float:
    """Area under the stepwise precision-recall curve over different scores, whatever the order of equal ones.

    Args:
        scores, hits, truths: as `best_operating_point`.
    """
    values = np.asarray(scores, np.float64)
    if not len(values) or not truths:
        return 0.0
    points = _totals(values, np.asarray(hits).astype(np.int64), np.ones(len(values), np.int64))
    highest_from_here = np.maximum.accumulate((points.true / points.all)[::-1])[::-1]
    return float((np.diff(points.true / truths, prepend=0.0) * highest_from_here).sum())


def detection_curve(
    figures: Sequence[NDArray[np.floating]],
    radii_px: Sequence[float],
    centres: Sequence[NDArray[np.floating]],
    scores: Sequence[NDArray[np.floating]],
) -> dict[str, float]:
    """Hits of all images together at every threshold.

    Args:
        figures: for each image its mitotic figures, float (N, 2), px.
        radii_px: for each the distance of a match, `MATCH_UM` in its px.
        centres: for each what was found, float (K, 2), px, in any order.
        scores: likewise, float (K,), in [0, 1].

    Returns:
        average_precision (area under the stepwise curve), the best f1, and its threshold, which lies between the last
        accepted and the next candidate.
    """
    sorted_scores: list[NDArray[np.floating]] = [np.zeros(0)]
    hits: list[Mask] = [np.zeros(0, bool)]
    for truths, radius, found, score in zip(figures, radii_px, centres, scores, strict=True):
        x, y = found.T
        # In falling order of score, then of place, each detection takes the nearest figure that is left.
        order = np.lexsort((x, y, -score))
        sorted_scores.append(score[order])
        hits.append(match(found[order], truths, radius) >= 0)
    together = np.concatenate(sorted_scores), np.concatenate(hits), sum(map(len, figures))
    f1, threshold = best_operating_point(*together)
    return {"average_precision": stepwise_average_precision(*together), "f1": f1, "threshold": threshold}


def counts_at(points: Steps, threshold: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """(true positives, all positives) of `operating_points` from a threshold on; arrays for several thresholds."""
    place = np.searchsorted(-points.scores, -np.asarray(threshold), side="right")
    return np.append(0, points.true)[place], np.append(0, points.all)[place]


def f1(true_positives: Number, false_negatives: Number, false_positives: Number) -> Number:
    """The organisers' F1, of counts or arrays of them: 1.0 where there is nothing to find and nothing is found."""
    return (2 * true_positives + EPSILON) / (2 * true_positives + false_positives + false_negatives + EPSILON)


def _middle_95(values: ArrayLike) -> tuple[float, float]:
    known = np.asarray(values)
    known = known[~np.isnan(known)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def bootstrap_by_image(
    counts: ArrayLike, metric: Callable[..., Number], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a metric of summed counts when whole images are drawn with replacement.

    Args:
        counts: int (images, K).
        metric: function of K arrays (draws,), the summed counts.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        (low, high) floats.
    """
    rows = np.asarray(counts)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return _middle_95(metric(*(weights @ rows).T))


# --- Track 1 ------------------------------------------------------------------


def average_precision(cases: Sequence[DetectionCase]) -> float:
    """COCO's AP at an IoU of 0.5 over all points, whatever their name; -1 where no image has a figure.

    Squares of 22.5 um in mm, as they are: COCO's classes of area do not touch the figure over all areas. With equal
    scores the order of the images counts, and so does the order of the points in an image. The back end
    faster-coco-eval gives pycocotools' figures here, and only the IoU that is asked for is computed.
    """
    if not any(case.positives for case in cases):
        return -1.0
    try:
        import torch
        from torchmetrics.detection.mean_ap import MeanAveragePrecision
    except ModuleNotFoundError as error:
        raise not_installed(error) from None

    metric = MeanAveragePrecision(
        iou_thresholds=[0.5],
        rec_thresholds=RECALL_STEPS,
        max_detection_thresholds=[1, 10, 1_000_000],
        backend="faster_coco_eval",
    )

    def squares(points: Floats) -> dict[str, torch.Tensor]:
        x, y = points[:, :1], points[:, 1:2]
        sides = np.concatenate([x - HALF_SIDE_MM, y - HALF_SIDE_MM, x + HALF_SIDE_MM, y + HALF_SIDE_MM], axis=1)
        return {"boxes": torch.tensor(sides, dtype=torch.float32), "labels": torch.ones(len(points), dtype=torch.int)}

    for case in cases:
        scores = torch.tensor(case.scores, dtype=torch.float32)
        metric.update([squares(case.points) | {"scores": scores}], [squares(case.truths)])
    return float(metric.compute()["map_50"].item())


def froc(cases: Sequence[DetectionCase]) -> tuple[Floats, Floats]:
    """Free-response operating characteristic at 40 thresholds, spaced evenly from the lowest to the highest score.

    Args:
        cases: of any number.

    Returns:
        false positives an image and recall, float64 (40,) each; fewer if scores are all but equal, (0,) without points.
    """
    scores = np.concatenate([np.zeros(0), *(case.scores for case in cases)])
    if len(scores) == 0:
        return np.zeros(0), np.zeros(0)
    thresholds = np.unique(np.linspace(scores.min(), scores.max(), FROC_THRESHOLDS))
    true, positives = counts_at(operating_points([case for case in cases if not case.has_ties]), thresholds)
    for case in cases:
        if case.has_ties:
            true += [case.true_from(threshold) for threshold in thresholds]
            positives += (case.scores >= thresholds[:, None]).sum(axis=1)
    return (positives - true) / len(cases), true / (sum(case.positives for case in cases) + EPSILON)


def froc_area(cases: Sequence[DetectionCase]) -> float:
    """Area under `froc` from 0 to 8 false positives an image, not normalised (8 at most); nan without points.

    Points of the curve with equally many false positives come in the order that `numpy.argsort` leaves them in, which
    the organisers leave open too.
    """
    false_per_image, recall = froc(cases)
    if len(recall) == 0:
        return math.nan
    order = np.argsort(false_per_image)
    steps = np.linspace(0, FROC_MAX_FALSE, FROC_STEPS)
    heights = np.interp(steps, false_per_image[order], recall[order], left=0, right=recall[order][-1])
    return float(np.trapezoid(heights, steps))


def detection_figures(cases: Sequence[DetectionCase]) -> dict[str, float]:
    """precision, recall, f1, AP and froc_auc, floats, of some cases; the organisers' stand-ins where there are none."""
    true, missed, false = (sum(case.counts[index] for case in cases) for index in range(3))
    return {
        "precision": true / (true + false + EPSILON),
        "recall": true / (true + missed + EPSILON),
        "f1": float(f1(true, missed, false)),
        "AP": average_precision(cases),
        "froc_auc": froc_area(cases),
    }


def detection_strata(cases: Sequence[DetectionCase]) -> dict[str, list[DetectionCase]]:
    """The cases of each tumour domain, "tumor_0" and so on, then of each ROI type, "roi_type_hotspot" and so on."""
    strata = {
        f"tumor_{domain}": [case for case in cases if case.domain == domain]
        for domain in np.unique([case.domain for case in cases])  # all numbers or all texts; one float makes all floats
    }
    return strata | {f"roi_type_{kind}": [case for case in cases if case.roi_type == kind] for kind in ROI_TYPES}


def spoken(stratum: str) -> str:
    """A stratum's name for people: "tumour 0"."""
    for start, text in (("tumor_", "tumour "), ("domain_", "tumour domain "), ("roi_type_", "ROI type ")):
        if stratum.startswith(start):
            return text + stratum.removeprefix(start)
    return stratum


def detection_aggregates(cases: Sequence[DetectionCase]) -> dict[str, float]:
    """The `aggregates` of Track 1's metrics.json, in its order."""
    overall = detection_figures(cases)
    first = ("precision", "recall", "f1_score", "froc_auc", "AP")
    aggregates = {name: overall["f1" if name == "f1_score" else name] for name in first}
    for stratum, chosen in detection_strata(cases).items():
        figures = overall if len(chosen) == len(cases) else detection_figures(chosen)
        aggregates |= {f"{stratum}_{name}": figure for name, figure in figures.items()}
    return aggregates


class CountError(NamedTuple):
    """How well the figures of an image are counted, whichever they are.

    Attributes:
        images: how many.
        slope: of the least-squares line of predicted over true counts; nan where all true counts are the same.
        bias: mean of predicted minus true counts.
        low, high: the 95 % limits of agreement, bias -+ 1.96 standard deviations of the differences; nan of one image.
    """

    images: int
    slope: float
    bias: float
    low: float
    high: float


def count_error(cases: Sequence[DetectionCase]) -> CountError:
    """Bland and Altman, Lancet 1986;327:307, of the accepted points and the labelled figures of each image."""
    predicted, true = image_counts(cases).T
    error = predicted - true
    slope = float(np.polyfit(true, predicted, 1)[0]) if len(set(true.tolist())) > 1 else math.nan
    bias = float(error.mean())
    reach = 1.96 * float(error.std(ddof=1)) if len(error) > 1 else math.nan
    return CountError(len(cases), slope, bias, bias - reach, bias + reach)


def image_counts(cases: Sequence[DetectionCase]) -> Counts:
    """int64 (images, 2): how many points are accepted, and how many figures are labelled."""
    return np.array([(case.accepted.sum(), case.positives) for case in cases], np.int64)


# --- Track 2 ------------------------------------------------------------------


def confusion(labels: Mask, called: Mask) -> tuple[int, int, int, int]:
    """(true positives, false positives, false negatives, true negatives) of bool (N,) each."""
    pairs = ((labels, called), (~labels, called), (labels, ~called), (~labels, ~called))
    true, false, missed, rejected = (int((truth & answer).sum()) for truth, answer in pairs)
    return true, false, missed, rejected


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike, called: Mask | None = None) -> dict[str, float]:
    """Track 2's metrics; atypical is the positive class.

    Args:
        labels: int or bool (N,), 0 normal, 1 atypical.
        probabilities: float (N,), P(atypical).
        called: bool (N,), the predicted class; without it, .5 is the operating point.

    Returns:
        dict of floats: balanced_accuracy, roc_auc, sensitivity, specificity, accuracy;
        nan where a class that a figure needs is absent.
    """
    from sklearn.metrics import roc_auc_score

    atypical = np.asarray(labels).astype(bool)
    true, false, missed, rejected = confusion(atypical, np.asarray(probabilities) >= 0.5 if called is None else called)
    sensitivity = true / (true + missed) if true + missed else math.nan
    specificity = rejected / (rejected + false) if rejected + false else math.nan
    both = 0 < true + missed < len(atypical)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "roc_auc": float(roc_auc_score(atypical, probabilities)) if both else math.nan,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": (true + rejected) / len(atypical),
    }


def bootstrap_by_case(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    cases: NDArray[Any],
    metric: str,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a metric when whole cases are drawn with replacement.

    An area under a curve is no function of summed counts, which `bootstrap_by_image` needs and is quicker with.

    Args:
        labels, probabilities, cases: (N,).
        metric: a key of `classification_metrics`.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        (low, high) floats.
    """
    rows = [np.flatnonzero(cases == case) for case in np.unique(cases)]
    generator = np.random.default_rng(seed)
    figures = []
    for _ in range(draws):
        drawn = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        figures.append(classification_metrics(labels[drawn], probabilities[drawn])[metric])
    return _middle_95(figures)


def pooled(stacks: Sequence[StackCase]) -> StackCase:
    """The pages of all stacks as one `StackCase` without a name."""
    names = ("domains", "labels", "called", "scores")
    return StackCase("", *(np.concatenate([getattr(stack, name) for stack in stacks]) for name in names))


def stack_strata(stacks: Sequence[StackCase]) -> dict[str, list[StackCase]]:
    """The pages of each tumour domain, "domain_1" and so on: for each the `StackCase`s, cut to these pages."""
    strata = {}
    for domain in np.unique(pooled(stacks).domains):
        parts = [stack.of_domain(domain) for stack in stacks]
        strata[f"domain_{domain}"] = [part for part in parts if len(part.labels)]
    return strata


def balanced_accuracy(
    true_positives: Number, false_positives: Number, false_negatives: Number, true_negatives: Number
) -> Number:
    """Mean of sensitivity and specificity, of counts or arrays of them; that of an absent class counts as 0."""
    sensitivity = true_positives / np.maximum(true_positives + false_negatives, 1)
    return (sensitivity + true_negatives / np.maximum(true_negatives + false_positives, 1)) / 2


def stack_aggregates(stacks: Sequence[StackCase]) -> dict[str, Any]:
    """The `aggregates` of Track 2's metrics.json, in its order.

    The organisers' run ends where a class is absent over all stacks; here those figures are nan. In a domain they
    take scikit-learn's 0 for the sensitivity (or specificity) of an absent class, and so does this.
    """
    names = ("sensitivity", "specificity", "balanced_accuracy", "roc_auc", "accuracy")
    pages = pooled(stacks)
    figures = classification_metrics(pages.labels, pages.scores, pages.called)
    aggregates: dict[str, Any] = {f"overall_{name}": figures[name] for name in names}
    for stratum, parts in stack_strata(stacks).items():
        part = pooled(parts)
        figures = classification_metrics(part.labels, part.scores, part.called)
        figures |= {name: float(np.nan_to_num(figures[name])) for name in ("sensitivity", "specificity")}
        figures["balanced_accuracy"] = (figures["sensitivity"] + figures["specificity"]) / 2
        aggregates[stratum] = {name: figures[name] for name in (*names[:3], "accuracy", "roc_auc")}
    return aggregates


# --- calibration --------------------------------------------------------------


def scores_and_labels(cases: Sequence[Case]) -> tuple[Floats, Mask]:
    """Every prediction's score, float64 (N,), and whether it is one of a figure (atypical one), bool (N,)."""
    scores = np.concatenate([case.scores for case in cases])
    return scores, np.concatenate(
        [
            case.matched(np.ones(len(case.scores), bool)) if isinstance(case, DetectionCase) else case.labels
            for case in cases
        ]
    )


def reliability_bins(
    probabilities: Floats, positive: Mask, weights: Floats, count: int = 10
) -> tuple[Floats, Floats, Floats]:
    """Predicted probability against observed fraction, in bins of equal width.

    Args:
        probabilities: float (N,); values outside [0, 1] count as the nearest in it.
        positive: bool (N,).
        weights: float (N,).
        count: of bins.

    Returns:
        predicted, observed, fraction: float64, one a bin that is not empty: weighted means, and its part of all weight.
    """
    clipped = np.clip(probabilities, 0, 1)
    bins = np.minimum((clipped * count).astype(int), count - 1)
    total, predicted, observed = (
        np.bincount(bins, weights * values, count) for values in (np.ones(len(bins)), clipped, positive)
    )
    full = total > 0
    return predicted[full] / total[full], observed[full] / total[full], total[full] / total.sum()


def calibration_errors(probabilities: Floats, positive: Mask, weights: Floats) -> tuple[float, float]:
    """(expected calibration error over 10 bins, Brier score), floats; arguments as `reliability_bins`."""
    predicted, observed, fraction = reliability_bins(probabilities, positive, weights)
    brier = np.average((np.clip(probabilities, 0, 1) - positive) ** 2, weights=weights)
    return float((fraction * np.abs(predicted - observed)).sum()), float(brier)


# By track, a function of the sums of `counts`.
RANKING: dict[int, tuple[str, Callable[..., Number]]] = {1: ("F1", f1), 2: ("balanced accuracy", balanced_accuracy)}
STRATA: dict[int, Callable[..., Mapping[str, Sequence[Case]]]] = {1: detection_strata, 2: stack_strata}  # by track
