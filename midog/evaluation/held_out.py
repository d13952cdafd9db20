"""Track 2's figures out of fold: what a cross-validated training wrote about the crops that each fold held out."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief
from midog.evaluation.metrics import bootstrap_by_case, classification_metrics, reliability_bins
from midog.evaluation.operating_point import (
    RULES,
    Rule,
    calibrated_by_other_folds,
    carried_over,
    carried_probabilities,
    summary,
)
from midog.evaluation.tables import check_columns
from midog.files import read_yaml, write_json

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

COLUMNS = ("file", "case", "domain", "fold", "label", "one_view", "raw")
NAME = "held_out.csv"
RAW = "raw probabilities"
BINS = 5  # of a reliability diagram: a domain may have some tens of atypical crops


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
            table = pd.read_csv(path, dtype={"domain": str})
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({brief(error)}); train this fold again") from None
        check_columns(path, table, COLUMNS, ("fold", "label", "one_view", "raw"))
        tables.append(table)
    return pd.concat(tables, ignore_index=True).fillna({"domain": "unknown"})


def rule_of(out: Path) -> Rule:
    """The operating point's rule in the recipe of a training; "pooled" where it tells none.

    Raises:
        UserError: recipe.yaml cannot be read, or has an unknown rule.
    """
    path = out / "recipe.yaml"
    return rule_in(read_yaml(path), path, "plan", "training", "classifier") if path.exists() else RULES[0]


def rule_in(values: Any, path: Path, *keys: str) -> Rule:
    """As `rule_of`, from the mapping under some keys of a YAML file."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    found = values.get("operating_point", RULES[0]) if isinstance(values, dict) else RULES[0]
    if found not in RULES:
        raise UserError(f"{path}: operating_point {found!r} is unknown; {', '.join(RULES)} expected")
    return found


def evaluate_held_out(out: Path, folds: Sequence[int], rule: Rule) -> dict[str, dict[str, Any]]:
    """Figures of crops by the networks that did not learn from them; printed, and written into the training's folder.

    Args:
        out: with fold<number>/held_out.csv; gets out_of_fold.csv, metrics.json, roc.png and calibration.png.
        folds: numbers of the folds to take.
        rule: of the operating point.

    Returns:
        overall, views, raw (without calibration, as papers tell it), folds, domains, and, by rule, carried_over.

    Raises:
        UserError: as `read_held_out`.
    """
    table = read_held_out(out, folds)
    one_view = calibrated_by_other_folds(table.assign(raw=table.one_view), rule)
    table["probability"] = calibrated_by_other_folds(table, rule)
    metrics: dict[str, dict[str, Any]] = {
        "overall": overall_figures(table),
        "views": {"1 view": overall_figures(table.assign(probability=one_view))},
        "raw": {RAW: raw_figures(table)},
        "folds": figures_by(table, "fold"),
        "domains": figures_by(table, "domain"),
    }
    spread = [figures["balanced_accuracy"] for figures in metrics["folds"].values()]
    metrics["overall"]["balanced_accuracy_fold_mean"] = float(np.mean(spread))
    metrics["overall"]["balanced_accuracy_fold_deviation"] = float(np.std(spread))
    _log_figures("out of fold", metrics)
    _log_raw(metrics["raw"][RAW])
    carried = {each: carried_over([table], [each]) for each in RULES}
    metrics["carried_over"] = {each: carried_content(figures) for each, figures in carried.items()}
    _log_rules(carried)
    _log_domains(rule, carried[rule])
    table.to_csv(out / "out_of_fold.csv", index=False)
    write_json(out / "metrics.json", plain(metrics))
    _plot(table, carried_probabilities([table], [rule]), out)
    return metrics


def evaluate_trainings(outs: Sequence[Path], written: Path | None) -> None:
    """Several trainings on the same crops beside each other, and the mean of their calibrated probabilities.

    Each has folds of its own: a crop is judged by the networks that held it out.

    Args:
        outs: as `evaluate_held_out` has one; nothing is written there.
        written: the folder that gets out_of_fold.csv (of the mean), metrics.json, roc.png and calibration.png; or None.

    Raises:
        UserError: as `read_held_out`; the trainings have other crops.
    """
    tables, rules = read_trainings(outs), [rule_of(out) for out in outs]
    names = [*map(str, outs), "mean"]
    width = max(map(len, names))
    logger.info(
        f"{'':{width}s} {'AUC':>6} {'95 % interval':>16} {'BA':>6} {'95 % interval':>16}, without the domain: "
        f"{'BA':>6} {'lost':>6} {'worst':>6} worst domain"
    )
    found = []
    members = [([table], [rule]) for table, rule in zip(tables, rules, strict=True)]
    for name, (parts, own) in zip(names, [*members, (tables, rules)], strict=True):
        mean = np.mean([calibrated_by_other_folds(*each) for each in zip(parts, own, strict=True)], axis=0)
        table = tables[0].drop(columns=["fold", "one_view", "raw"]).assign(probability=mean)
        overall, figures = overall_figures(table), carried_over(parts, own)
        found.append({"operating_point": own, "overall": overall, "carried_over": carried_content(figures)})
        shown = " ".join(
            "{:6.4f} {:6.4f} to {:6.4f}".format(overall[key], *overall[f"{key}_interval_95"])
            for key in ("roc_auc", "balanced_accuracy")
        )
        logger.info(f"{name:{width}s} {shown}{'':22s}{_carried_line(figures)}")
    by_rule = {rule: carried_over(tables, [rule] * len(tables)) for rule in RULES}
    *trainings, of_mean = found
    of_mean["carried_over_by_rule"] = {rule: carried_content(figures) for rule, figures in by_rule.items()}
    logger.info("the mean:")
    _log_rules(by_rule)
    _log_domains("by recipe", figures)
    if written:
        table.to_csv(written / "out_of_fold.csv", index=False)
        content = {"trainings": dict(zip(names[:-1], trainings, strict=True)), "mean": of_mean}
        write_json(written / "metrics.json", plain(content))
        _plot(table, carried_probabilities(tables, rules), written)


def read_trainings(outs: Sequence[Path]) -> "list[pd.DataFrame]":
    """`read_held_out` of all folds of several trainings, sorted by file.

    Raises:
        UserError: as `read_held_out`; a training is there twice, has other crops than the first, or has a crop with
            another label, case or domain.
    """
    tables: list[pd.DataFrame] = []
    for number, out in enumerate(outs):
        if out in outs[:number]:
            raise UserError(f"{out}: is given twice; name each training once")
        table = read_held_out(out, folds_in(out)).sort_values("file", ignore_index=True)
        first = tables[0] if tables else table
        if list(table.file) != list(first.file):
            alone = min(set(table.file) ^ set(first.file), default="a crop that comes twice")
            raise UserError(f"{out}: has other crops than {outs[0]} ({alone}); give trainings with the same --data")
        for column in ("label", "case", "domain"):
            different = np.flatnonzero((table[column] != first[column]).to_numpy())
            if len(different):
                mine, other = table.iloc[different[0]], first.iloc[different[0]]
                raise UserError(
                    f"{out / f'fold{mine.fold}' / NAME}: {column} of {mine.file} is {mine[column]}, in {outs[0]} "
                    f"{other[column]}; give trainings with the same --data"
                )
        tables.append(table)
    return tables


def carried_content(figures: "pd.DataFrame | None") -> dict[str, Any] | None:
    """What metrics.json holds of `carried_over`; None of one domain alone."""
    if figures is None:
        return None
    return summary(figures) | {"domains": figures.to_dict(orient="index")}


def _log_rules(carried: "Mapping[Rule, pd.DataFrame | None]") -> None:
    """How each rule's operating point carries over, one a line."""
    title = "operating point without the domain, by rule"
    logger.info(f"{title:45s} {'BA':>6} {'lost':>6} {'worst':>6} worst domain")
    for rule, figures in carried.items():
        logger.info(f"{rule:45s} {_carried_line(figures)}")
    logger.info("BA and what it loses to each domain's own best threshold: means of the domains; worst: the lowest BA")


def _carried_line(figures: "pd.DataFrame | None") -> str:
    found = summary(figures) if figures is not None else {}
    numbers = _numbers(map(found.get, ("balanced_accuracy_mean", "lost_mean", "balanced_accuracy_worst")))
    return f"{numbers} {found.get('worst_domain') or 'n/a'}"


def _log_domains(rule: str, figures: "pd.DataFrame | None") -> None:
    """How the operating point of a rule carries over to each domain, one a line."""
    if figures is None:
        logger.info("one domain alone: how an operating point carries over to another cannot be told")
        return
    title = f"operating point without the domain, {rule}"
    logger.info(f"{title:45s} {'BA':>6} {'best':>6} {'lost':>6} {'AUC':>6} {'sens':>6} {'spec':>6} atypical normal")
    columns = ["balanced_accuracy", "best_balanced_accuracy", "lost", "roc_auc", "sensitivity", "specificity"]
    for domain, row in figures.iterrows():
        logger.info(f"{domain:45s} {_numbers(row[columns])} {row.atypical:8.0f} {row.normal:6.0f}")


def _numbers(values: Iterable[float | None]) -> str:
    """Of four digits, or n/a where there is none."""
    return " ".join(f"{'n/a':>6}" if value is None or math.isnan(value) else f"{value:6.4f}" for value in values)


def plain(values: Any) -> Any:
    """Values without what YAML would refer back to (shared lists) and what JSON does not have (nan becomes null)."""
    return json.loads(json.dumps(values), parse_constant=lambda name: None)


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


def _plot(table: "pd.DataFrame", carried: NDArray[np.float64] | None, out: Path) -> None:
    """roc.png and calibration.png.

    Args:
        table: with label, domain and probability, which is that of other folds' calibration.
        carried: (N,), that of other domains', or None of one domain alone.
        out: a folder.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
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
    if carried is None:
        _plot_reliability(table, "other folds", out / "calibration.png")
    else:
        _plot_reliability(table.assign(probability=carried), "other domains", out / "calibration.png")
    plt.close("all")


def _plot_reliability(table: "pd.DataFrame", others: str, path: Path) -> None:
    """A reliability diagram a domain with both classes, which weigh the same, as the operating point has it.

    A point above the diagonal at .5 is of a threshold that is too high for the domain, one below of one too low.
    """
    import matplotlib.pyplot as plt

    parts = [("all", table), *table.groupby("domain")]
    both = [(name, part) for name, part in parts if part.label.nunique() == 2]
    columns = min(3, max(1, len(both)))
    rows = max(1, math.ceil(len(both) / columns))
    size = (3.2 * columns, 3.4 * rows + 0.4)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for axes, (name, part) in zip(grid.flat, both, strict=False):
        atypical = part.label.to_numpy() == 1
        weights = np.where(atypical, 0.5 / atypical.sum(), 0.5 / (~atypical).sum())
        predicted, observed, fraction = reliability_bins(part.probability.to_numpy(), atypical, weights, BINS)
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.axvline(0.5, color="grey", linewidth=0.8)
        axes.plot(predicted, observed, color="#1f5fa8", linewidth=1)
        axes.scatter(predicted, observed, 300 * fraction, color="#1f5fa8", clip_on=False)
        axes.set_title(f"{name}\n{atypical.sum()} atypical, {(~atypical).sum()} normal", fontsize=8)
        axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    for axes in grid.flat[len(both) :]:
        axes.set_axis_off()
    figure.supxlabel(f"P(atypical), calibrated on {others}", fontsize=9)
    figure.supylabel("fraction atypical (area of a point: of all crops), classes weigh the same", fontsize=9)
    figure.savefig(path, dpi=120)
