"""Plots of an evaluation: one function a picture, each draws on axes that it is given.

`write_plots` puts those of a track into a folder. Matplotlib takes long to
import, so that happens inside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from midog.evaluation import metrics
from midog.evaluation.metrics import Case, DetectionCase, Floats, Mask, StackCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, DPI = (5.2, 4.2), 110  # inches, dots an inch
BLUE, PALE, ORANGE, GREY = "#1f5fa8", "#9db8d9", "#c2410c", "#8a8f98"


def write_plots(track: int, cases: Sequence[Case], folder: Path) -> list[tuple[Path, str, str]]:
    """Write the plots of an evaluation as PNG.

    Args:
        track: 1 or 2.
        cases: `midog.evaluation.metrics.DetectionCase`s or `StackCase`s.
        folder: exists.

    Returns:
        list of (path, heading, what it shows).
    """
    plots: dict[int, tuple[tuple[str, str, Callable[..., None], str], ...]] = {
        1: (
            (
                "precision-recall",
                "Precision and recall",
                precision_recall,
                "At every threshold, by the 7.5 um matching.",
            ),
            ("froc", "FROC", froc, "Recall over false positives an image; its area from 0 to 8 is FROC AUC."),
            (
                "f1-over-threshold",
                "F1 over threshold",
                f1_over_threshold,
                "If points from a probability on were figures.",
            ),
            ("domains", "Domains", domains, "F1 as submitted, with 95 % intervals, bootstrap by image."),
            ("reliability", "Reliability", reliability, "Fraction of points that are figures, by their probability."),
            (
                "counts",
                "Counts",
                counted,
                "Predicted over labelled figures, an image a point.",
            ),
        ),
        2: (
            ("roc", "ROC", roc, "Sensitivity over 1 - specificity."),
            ("domains", "Domains", domains, "Balanced accuracy as submitted, 95 % intervals, bootstrap by stack."),
            ("reliability", "Reliability", reliability, "Fraction of crops that are atypical, by their probability."),
            ("confusion-matrix", "Confusion matrix", confusion_matrix, "Crops by label and predicted class."),
        ),
    }
    return [
        (write_plot(folder / f"{name}.png", draw, cases), heading, shown) for name, heading, draw, shown in plots[track]
    ]


def write_plot(path: Path, draw: Callable[..., None], *arguments: object) -> Path:
    """Draw on new axes, `draw(axes, *arguments)`, and write a PNG; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, *arguments)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _unit_axes(axes: "Axes", **labels: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), **labels)
    axes.grid(color="#e5e7eb", linewidth=0.8)


def precision_recall(axes: "Axes", cases: Sequence[DetectionCase]) -> None:
    points = metrics.operating_points(cases)
    figures = max(1, sum(case.positives for case in cases))
    axes.plot(points.true / figures, points.true / points.all, color=BLUE)
    true, missed, false = (sum(case.counts[index] for case in cases) for index in range(3))
    if true + false:
        axes.plot(true / figures, true / (true + false), "o", color=ORANGE, label="as submitted")
        axes.legend()
    _unit_axes(axes, xlabel="recall", ylabel="precision")


def froc(axes: "Axes", cases: Sequence[DetectionCase]) -> None:
    points = metrics.operating_points(cases)
    figures = max(1, sum(case.positives for case in cases))
    axes.plot((points.all - points.true) / len(cases), points.true / figures, color=BLUE, label="every threshold")
    false_per_image, recall = metrics.froc(cases)
    axes.plot(false_per_image, recall, ".", color=ORANGE, label="the organisers' 40 thresholds")
    _unit_axes(axes, xlabel="false positives an image", ylabel="recall")
    axes.set_xlim(0, metrics.FROC_MAX_FALSE)
    axes.legend(loc="lower right")


def f1_over_threshold(axes: "Axes", cases: Sequence[DetectionCase]) -> None:
    points = metrics.operating_points(cases)
    figures = sum(case.positives for case in cases)
    _unit_axes(axes, xlabel="least probability that is accepted", ylabel="F1")  # first: scores may lie anywhere
    axes.plot(points.scores, metrics.f1(points.true, figures - points.true, points.all - points.true), color=BLUE)
    axes.axvline(0.5, color=GREY, linestyle=":", label="0.5")
    axes.legend()


def domains(axes: "Axes", cases: Sequence[Case]) -> None:
    """Bars of the ranking metric: overall, a tumour domain, a ROI type; Track 1's only where there are figures."""
    track = 1 if isinstance(cases[0], metrics.DetectionCase) else 2
    name, metric = metrics.RANKING[track]
    groups: dict[str, Sequence[Case]] = {"overall": cases} | {
        stratum: chosen
        for stratum, chosen in metrics.STRATA[track](cases).items()
        if track == 2 or any(case.positives for case in chosen)
    }
    counts = [np.array([case.counts for case in chosen]) for chosen in groups.values()]
    heights = np.array([metric(*each.sum(axis=0)) for each in counts])
    intervals = np.array([metrics.bootstrap_by_image(each, metric) for each in counts])
    low, high = intervals.T
    reach = np.maximum([heights - low, high - heights], 0)  # of few images an interval can miss the figure itself
    places = np.arange(len(groups))[::-1]
    colours = [BLUE, *[PALE] * (len(groups) - 1)]
    axes.barh(places, heights, xerr=reach, color=colours, ecolor="#333333", capsize=3)
    axes.set(yticks=places, yticklabels=[metrics.spoken(group) for group in groups], xlim=(0, 1), xlabel=name)


def counted(axes: "Axes", cases: Sequence[DetectionCase]) -> None:
    """Predicted over labelled figures an image, with their least-squares line."""
    predicted, true = metrics.image_counts(cases).T
    found = metrics.count_error(cases)
    most = max(1, int(predicted.max()), int(true.max()))
    axes.plot([0, most], [0, most], color=GREY, linestyle=":", label="as labelled")
    axes.plot(true, predicted, "o", color=BLUE, alpha=0.5)
    if not math.isnan(found.slope):
        ends = np.array([true.min(), true.max()])
        line = predicted.mean() + found.slope * (ends - true.mean())  # it goes through the means
        axes.plot(ends, line, color=ORANGE, label=f"slope {found.slope:.2f}")
    axes.set(xlim=(-0.02 * most, 1.02 * most), ylim=(-0.02 * most, 1.02 * most))
    axes.set(xlabel="labelled figures of an image", ylabel="predicted figures")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.legend()


def reliability(axes: "Axes", cases: Sequence[Case]) -> None:
    scores, positive = metrics.scores_and_labels(cases)
    draw_reliability(axes, {"as submitted": scores}, positive, np.ones(len(scores)))


def draw_reliability(axes: "Axes", probabilities: Mapping[str, Floats], positive: Mask, weights: Floats) -> None:
    """Reliability diagram of one or several versions of the probabilities.

    Args:
        probabilities: dict from a name to float (N,).
        positive: bool (N,).
        weights: float (N,).
    """
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    for colour, (name, values) in zip((BLUE, ORANGE), probabilities.items(), strict=False):
        predicted, observed, _ = metrics.reliability_bins(values, positive, weights)
        axes.plot(predicted, observed, marker="o", color=colour, label=name)
    _unit_axes(axes, xlabel="predicted probability", ylabel="observed fraction")
    axes.legend()


def roc(axes: "Axes", cases: Sequence[StackCase]) -> None:
    pages = metrics.pooled(cases)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    if 0 < pages.positives < len(pages.labels):
        from sklearn.metrics import roc_curve

        axes.plot(*roc_curve(pages.labels, pages.scores)[:2], color=BLUE)
        true, false, missed, rejected = pages.counts
        axes.plot(false / (false + rejected), true / (true + missed), "o", color=ORANGE, label="as submitted")
        axes.legend(loc="lower right")
    _unit_axes(axes, xlabel="1 - specificity", ylabel="sensitivity")


def confusion_matrix(axes: "Axes", cases: Sequence[StackCase]) -> None:
    true, false, missed, rejected = metrics.pooled(cases).counts
    counts = np.array([[rejected, false], [missed, true]])
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if fractions[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{fractions[row, column]:.1%}", ha="center", va="center", color=colour)
    names = ["normal", "atypical"]
    axes.set(xticks=[0, 1], xticklabels=names, yticks=[0, 1], yticklabels=names, xlabel="predicted", ylabel="label")


def draw_threshold(axes: "Axes", thresholds: Floats, values: Floats, chosen: float, name: str) -> None:
    """A metric over the threshold, with the one that was chosen.

    Args:
        thresholds, values: float (K,).
        chosen: the threshold.
        name: of the metric.
    """
    axes.plot(thresholds, values, color=BLUE)
    axes.axvline(0.5, color=GREY, linestyle=":", label="0.5, before")
    axes.axvline(chosen, color=ORANGE, label=f"{chosen:.3f}, becomes 0.5")
    _unit_axes(axes, xlabel="threshold of the probability before", ylabel=name)
    axes.legend()
