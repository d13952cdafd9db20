"""Track 2's figures out of fold: what a cross-validated training wrote about the crops that each fold held out."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.calibration import Calibration, platt
from midog.errors import UserError, brief
from midog.evaluation.metrics import bootstrap_by_case, classification_metrics
from midog.evaluation.tables import check_columns
from midog.files import write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

COLUMNS = ("file", "case", "domain", "fold", "label", "one_view", "raw")
NAME = "held_out.csv"
RAW = "raw probabilities"
UNREGULARISED = 1e6  # of Platt's scaling: thousands of crops need no regularisation
LEAST_SCALE = 1e-3  # never upside down, not even after two steps of training


def fit_calibration(probabilities: ArrayLike, labels: ArrayLike) -> Calibration:
    """Platt's scaling with balanced classes, so that .5 is where balanced accuracy is expected to peak.

    Args:
        probabilities: float (N,), before calibration.
        labels: int (N,).
    """
    try:
        return platt(probabilities, labels, UNREGULARISED)
    except ValueError:
        return Calibration(LEAST_SCALE)


def folds_in(out: Path) -> list[int]:
    """Numbers of the folds in a training's folder that are finished.

    Raises:
        UserError: none is.
    """
    found = [path.parent.name.removeprefix("fold") for path in out.glob(f"fold*/{NAME}")]
    folds = sorted(int(number) for number in found if number.isdigit())
    if not folds:
        raise UserError(f"{out}: no fold*/{NAME}; give --folds the --out of a finished training of Track 2")
    return folds


def read_held_out(out: Path, folds: Sequence[int]) -> "pd.DataFrame":
    """The rows of all folds, one after the other.

    Args:
        out: with fold<number>/held_out.csv.
        folds: their numbers.

    Raises:
        UserError: a file cannot be read, lacks a column or has a bad number.
    """
    import pandas as pd

    tables = []
    for fold in folds:
        path = out / f"fold{fold}" / NAME
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({brief(error)}); train this fold again") from None
        check_columns(path, table, COLUMNS, ("fold", "label", "one_view", "raw"))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def evaluate_held_out(out: Path, folds: Sequence[int]) -> tuple[Calibration, dict[str, dict[str, Any]]]:
    """Figures of crops by the networks that did not learn from them; printed, and written into the training's folder.

    Args:
        out: with fold<number>/held_out.csv; gets out_of_fold.csv, metrics.json, roc.png and calibration.png.
        folds: numbers of the folds to take.

    Returns:
        calibration: fitted on all held-out probabilities of single networks, for the export.
        metrics: overall, views, raw (without calibration, as papers tell it), folds and domains.

    Raises:
        UserError: as `read_held_out`.
    """
    table = read_held_out(out, folds)
    calibration = fit_calibration(table.raw, table.label)
    one_view = overall_figures(table.assign(probability=_calibrated_by_other_folds(table, "one_view")))
    table["probability"] = _calibrated_by_other_folds(table, "raw")
    metrics: dict[str, dict[str, Any]] = {
        "overall": overall_figures(table),
        "views": {"1 view": one_view},
        "raw": {RAW: raw_figures(table)},
        "folds": figures_by(table, "fold"),
        "domains": figures_by(table, "domain"),
    }
    spread = [figures["balanced_accuracy"] for figures in metrics["folds"].values()]
    metrics["overall"]["balanced_accuracy_fold_mean"] = float(np.mean(spread))
    metrics["overall"]["balanced_accuracy_fold_deviation"] = float(np.std(spread))
    table.to_csv(out / "out_of_fold.csv", index=False)
    write_json(out / "metrics.json", plain(metrics))
    _plot(table, out)
    _log_figures("out of fold", metrics)
    _log_raw(metrics["raw"][RAW])
    return calibration, metrics


def plain(values: Any) -> Any:
    """Values without what YAML would refer back to (shared lists) and what JSON does not have (nan becomes null)."""
    return json.loads(json.dumps(values), parse_constant=lambda name: None)


def _calibrated_by_other_folds(table: "pd.DataFrame", column: str) -> NDArray[np.float64]:
    """No crop is judged at a threshold that its own fold helped to choose (one fold alone has no other choice)."""
    probability = np.zeros(len(table))
    for fold in table.fold.unique():
        mine = (table.fold == fold).to_numpy()
        others = ~mine if (~mine).any() else mine
        probability[mine] = fit_calibration(table[column][others], table.label[others]).apply(table[column][mine])
    return probability


def overall_figures(table: "pd.DataFrame") -> dict[str, Any]:
    """Track 2's metrics with their 95 % intervals, from the columns label, probability and case."""
    labels, probability, cases = (table[name].to_numpy() for name in ("label", "probability", "case"))
    figures: dict[str, Any] = {**classification_metrics(labels, probability)}
    for name in ("balanced_accuracy", "roc_auc"):
        figures[f"{name}_interval_95"] = bootstrap_by_case(labels, probability, cases, name)
    return figures


def raw_figures(table: "pd.DataFrame") -> dict[str, Any]:
    """As `overall_figures` of what the networks say, with each fold's balanced accuracy, their mean and sample SD."""
    table = table.assign(probability=table.raw)
    folds = [figures["balanced_accuracy"] for figures in figures_by(table, "fold").values()]
    figures = overall_figures(table) | {"balanced_accuracy_folds": folds}
    figures["balanced_accuracy_fold_mean"] = float(np.mean(folds))
    if len(folds) > 1:
        figures["balanced_accuracy_fold_sd"] = float(np.std(folds, ddof=1))
    return figures


def figures_by(table: "pd.DataFrame", column: str) -> dict[str, dict[str, float]]:
    """Track 2's metrics for every value of a column."""
    return {
        f"{column} {value}": classification_metrics(part.label.to_numpy(), part.probability.to_numpy())
        for value, part in table.groupby(column)
    }


def _log_figures(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Overall figures, then those of every group, one a line."""
    logger.info(f"{title:45s} {'BA':>6} {'AUC':>6} {'sens':>6} {'spec':>6}")
    groups = {name: figures for part in list(metrics)[1:] for name, figures in metrics[part].items()}
    for name, figures in {"overall": metrics["overall"], **groups}.items():
        shown = [figures[key] for key in ("balanced_accuracy", "roc_auc", "sensitivity", "specificity")]
        logger.info(f"{name:45s} " + " ".join(f"{figure:6.4f}" for figure in shown))
    for name in ("balanced_accuracy", "roc_auc"):
        low, high = metrics["overall"][f"{name}_interval_95"]
        logger.info(f"95 % interval of {name}, bootstrap by case: {low:.4f} to {high:.4f}")


def _log_raw(figures: Mapping[str, Any]) -> None:
    folds = " ".join(f"{figure:.4f}" for figure in figures["balanced_accuracy_folds"])
    mean, sd = figures["balanced_accuracy_fold_mean"], figures.get("balanced_accuracy_fold_sd", math.nan)
    logger.info("balanced accuracy of the folds at .5, %s: %s; mean +- SD %.4f +- %.4f", RAW, folds, mean, sd)


def _plot(table: "pd.DataFrame", out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for name, part in [("overall", table), *table.groupby("domain")]:
        if part.label.nunique() == 2:
            false_positive, true_positive, _ = roc_curve(part.label, part.probability)
            area = roc_auc_score(part.label, part.probability)
            colour, width = ("black", 2) if name == "overall" else (None, 1)
            axes.plot(false_positive, true_positive, label=f"{name} {area:.3f}", color=colour, linewidth=width)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Out of fold ROC (AUC)", aspect="equal")
    if axes.lines:
        axes.legend(fontsize=7)
    figure.savefig(out / "roc.png", dpi=120)

    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for name, values in {"before": table.raw, "after, classes balanced": table.probability}.items():
        observed, expected = calibration_curve(table.label, np.clip(values, 0, 1), n_bins=10, strategy="quantile")
        axes.plot(expected, observed, marker="o", label=name)
    axes.set(xlabel="P(atypical)", ylabel="fraction atypical", title="Calibration out of fold", aspect="equal")
    axes.legend()
    figure.savefig(out / "calibration.png", dpi=120)
    plt.close("all")
