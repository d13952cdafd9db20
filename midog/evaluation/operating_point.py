"""Track 2's operating point, and how it carries over to hospitals and scanners that it was not chosen on.

A rule turns held-out probabilities into a `Calibration`, so that .5 is the operating point; tables have one row a crop,
with the columns label (0 normal, 1 atypical), domain, fold and raw (probability before calibration). How well a rule's
operating point carries over is seen by leaving one domain out: it is chosen on the others' crops alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.calibration import BEYOND, Calibration, logit, platt
from midog.evaluation.metrics import classification_metrics
from midog.system import DomainErrors

if TYPE_CHECKING:
    import pandas as pd

Rule = Literal["pooled", "domains", "worst"]
RULES: tuple[Rule, ...] = get_args(Rule)
UNREGULARISED = 1e6  # of Platt's scaling: thousands of crops need no regularisation
LEAST_SCALE = 1e-3  # never upside down, not even after two steps of training
ROUNDING = 1e-12  # balanced accuracies that are equal but for it


def fit_calibration(table: "pd.DataFrame", rule: Rule) -> Calibration:
    """The calibration that puts a rule's operating point at .5.

    Args:
        table: with label, domain and raw.
        rule: "pooled" is Platt's scaling with balanced classes; "domains" the same where every class of every domain
            weighs the same; "worst" has the scale of "domains" and the threshold at which the lowest balanced accuracy
            of all domains is highest.
    """
    try:
        weights = None if rule == "pooled" else _domain_weights(table)
        calibration = platt(table.raw, table.label, UNREGULARISED, weights)
    except ValueError:
        calibration = Calibration(LEAST_SCALE)
    if rule == "worst":
        domains = [part for _, part in table.groupby("domain") if part.label.nunique() == 2]
        if domains:
            calibration = Calibration(calibration.scale, -calibration.scale * _best_of_lowest(domains))
    return calibration


def _domain_weights(table: "pd.DataFrame") -> NDArray[np.float64]:
    """(N,), whose sum is N: both classes the same, and within a class every domain that has it."""
    crops = table.groupby(["domain", "label"]).label.transform("size")
    domains = table.groupby("label").domain.transform("nunique")
    return (len(table) / table.label.nunique() / (crops * domains)).to_numpy()


def _best_of_lowest(domains: "list[pd.DataFrame]") -> float:
    """The threshold, a logit, whose lowest balanced accuracy is highest: the middle of the widest range of such."""
    scores = [logit(domain.raw) for domain in domains]
    distinct = np.unique(np.concatenate(scores))
    edges = np.concatenate([[distinct[0] - 2 * BEYOND], distinct, [distinct[-1] + 2 * BEYOND]])
    lowest = np.min(
        [
            _balanced_accuracies(domain.label.to_numpy(), own, edges[:-1])
            for domain, own in zip(domains, scores, strict=True)
        ],
        axis=0,
    )
    changes = np.diff(np.concatenate([[False], lowest >= lowest.max() - ROUNDING, [False]]).astype(int))
    starts, ends = edges[changes == 1], edges[changes == -1]
    widest = np.argmax(ends - starts)
    return float((starts[widest] + ends[widest]) / 2)


def _balanced_accuracies(labels: ArrayLike, scores: ArrayLike, cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Balanced accuracy if the crops with a score above a cut were called atypical, one a cut; both classes needed."""
    atypical, scores = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
    missed, rejected = (
        np.searchsorted(np.sort(scores[part]), cuts, side="right") / part.sum() for part in (atypical, ~atypical)
    )
    return (1 - missed + rejected) / 2


def best_balanced_accuracy(labels: ArrayLike, scores: ArrayLike) -> float:
    """The highest balanced accuracy that any one threshold gives; nan without both classes.

    Args:
        labels: int or bool (N,), 0 normal, 1 atypical.
        scores: float (N,).
    """
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(_balanced_accuracies(labels, scores, np.append(-np.inf, np.unique(scores))).max())


def calibrated_by_other_folds(table: "pd.DataFrame", rule: Rule) -> NDArray[np.float64]:
    """Probabilities (N,): no crop is judged at an operating point that its own fold helped to choose.

    One fold alone has no other choice.
    """
    probability = np.zeros(len(table))
    for fold, rows in table.groupby("fold").indices.items():
        others = table[table.fold != fold]
        fitted = fit_calibration(others if len(others) else table, rule)
        probability[rows] = fitted.apply(table.raw.iloc[rows])
    return probability


def calibrated_by_other_domains(table: "pd.DataFrame", rule: Rule) -> NDArray[np.float64]:
    """Probabilities (N,): no crop is judged at an operating point that its own domain, or fold, helped to choose.

    Where a fold holds all of the other domains, only its domain is left out.

    Args:
        table: of two domains or more.
        rule: of `fit_calibration`.
    """
    probability = np.zeros(len(table))
    for (domain, fold), rows in table.groupby(["domain", "fold"]).indices.items():
        others = table[table.domain != domain]
        other_folds = others[others.fold != fold]
        fitted = fit_calibration(other_folds if len(other_folds) else others, rule)
        probability[rows] = fitted.apply(table.raw.iloc[rows])
    return probability


def domain_figures(table: "pd.DataFrame") -> "pd.DataFrame":
    """How every domain is judged at .5, and how it could be.

    Args:
        table: with label, domain and probability.

    Returns:
        One row a domain, named by it, with the columns atypical, normal (crops), roc_auc, sensitivity, specificity,
        balanced_accuracy, best_balanced_accuracy (at any one threshold) and lost (their difference); nan where a class
        is absent.
    """
    import pandas as pd

    rows = {}
    for domain, part in table.groupby("domain"):
        labels, probability = part.label.to_numpy(), part.probability.to_numpy()
        figures = classification_metrics(labels, probability)
        best = best_balanced_accuracy(labels, probability)
        rows[domain] = {
            "atypical": int(labels.sum()),
            "normal": int((labels == 0).sum()),
            **{name: figures[name] for name in ("roc_auc", "sensitivity", "specificity", "balanced_accuracy")},
            "best_balanced_accuracy": best,
            "lost": best - figures["balanced_accuracy"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")


def carried_probabilities(tables: "Sequence[pd.DataFrame]", rules: Sequence[Rule]) -> NDArray[np.float64] | None:
    """`calibrated_by_other_domains` of one training or several.

    Args:
        tables: with label, domain, fold and raw; one a training, the same crops in the same order, in any folds;
            their calibrated probabilities are averaged, as inference averages its members.
        rules: of `fit_calibration`, one a table.

    Returns:
        (N,), or None where there is one domain alone.
    """
    if tables[0].domain.nunique() < 2:
        return None
    return np.mean([calibrated_by_other_domains(*each) for each in zip(tables, rules, strict=True)], axis=0)


def carried_over(tables: "Sequence[pd.DataFrame]", rules: Sequence[Rule]) -> "pd.DataFrame | None":
    """`domain_figures` where no domain helped to choose the operating point that it is judged at.

    Args:
        tables, rules: as `carried_probabilities`.

    Returns:
        None where there is one domain alone.
    """
    probability = carried_probabilities(tables, rules)
    return None if probability is None else domain_figures(tables[0].assign(probability=probability))


def summary(figures: "pd.DataFrame") -> dict[str, Any]:
    """Of `domain_figures`: means over the domains with both classes, and the worst of these; None without any."""
    both = figures.dropna()
    if both.empty:
        return dict.fromkeys(
            ("balanced_accuracy_mean", "worst_domain", "balanced_accuracy_worst", "lost_mean", "lost_worst")
        )
    return {
        "balanced_accuracy_mean": float(both.balanced_accuracy.mean()),
        "worst_domain": str(both.balanced_accuracy.idxmin()),
        "balanced_accuracy_worst": float(both.balanced_accuracy.min()),
        "lost_mean": float(both.lost.mean()),
        "lost_worst": float(both.lost.max()),
    }


def domain_errors(figures: "pd.DataFrame | None") -> tuple[DomainErrors, ...]:
    """Of `domain_figures`, what model.yaml tells of the domains with both classes."""
    if figures is None:
        return ()
    return tuple(
        DomainErrors(
            domain=str(row.Index),
            atypical=int(row.atypical),
            normal=int(row.normal),
            sensitivity=round(float(row.sensitivity), 4),
            specificity=round(float(row.specificity), 4),
        )
        for row in figures.dropna().itertuples()
    )
