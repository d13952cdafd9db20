"""What a training run of Track 2 leaves behind: calibration, out-of-fold figures, plots, the export."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from midog.calibration import Calibration, platt
from midog.evaluation.metrics import bootstrap_by_case, classification_metrics
from midog.files import write_json
from midog.system import ClassifierWeights, DataSource, Made
from resources.train.common import commit, write_model

if TYPE_CHECKING:
    from resources.data.crops import Crops
    from resources.train.atypical import AtypicalRecipe
    from resources.train.common import Plan

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


def report_and_export(
    plan: "Plan[AtypicalRecipe]", crops: "Crops", folds: Sequence[int], subclasses: Sequence[str], out: Path
) -> None:
    """Write out_of_fold.csv, metrics.json, the plots and OUT/model/<system>/ from the finished folds."""
    table = pd.concat([pd.read_csv(out / f"fold{fold}" / "held_out.csv") for fold in folds], ignore_index=True)
    calibration = fit_calibration(table.raw, table.label)
    one_view = overall_figures(table.assign(probability=_calibrated_by_other_folds(table, "one_view")))
    table["probability"] = _calibrated_by_other_folds(table, "raw")
    metrics: dict[str, dict[str, Any]] = {
        "overall": overall_figures(table),
        "views": {"1 view": one_view},
        "folds": figures_by(table, "fold"),
        "domains": figures_by(table, "domain"),
    }
    spread = [figures["balanced_accuracy"] for figures in metrics["folds"].values()]
    metrics["overall"]["balanced_accuracy_fold_mean"] = float(np.mean(spread))
    metrics["overall"]["balanced_accuracy_fold_deviation"] = float(np.std(spread))
    table.to_csv(out / "out_of_fold.csv", index=False)
    write_json(out / "metrics.json", _plain(metrics))
    _plot(table, out)
    print_figures("out of fold", metrics)
    export(plan, crops, folds, subclasses, calibration, metrics, out)


def _plain(values: Any) -> Any:
    """Values without what YAML would refer back to (shared lists) and what JSON does not have (nan becomes null)."""
    return json.loads(json.dumps(values), parse_constant=lambda name: None)


def _calibrated_by_other_folds(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """No crop is judged at a threshold that its own fold helped to choose (one fold alone has no other choice)."""
    probability = np.zeros(len(table))
    for fold in table.fold.unique():
        mine = (table.fold == fold).to_numpy()
        others = ~mine if (~mine).any() else mine
        probability[mine] = fit_calibration(table[column][others], table.label[others]).apply(table[column][mine])
    return probability


def overall_figures(table: pd.DataFrame) -> dict[str, Any]:
    """Track 2's metrics with their 95 % intervals, from the columns label, probability and case."""
    labels, probability, cases = (table[name].to_numpy() for name in ("label", "probability", "case"))
    figures: dict[str, Any] = {**classification_metrics(labels, probability)}
    for name in ("balanced_accuracy", "roc_auc"):
        figures[f"{name}_interval_95"] = bootstrap_by_case(labels, probability, cases, name)
    return figures


def figures_by(table: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """Track 2's metrics for every value of a column."""
    return {
        f"{column} {value}": classification_metrics(part.label.to_numpy(), part.probability.to_numpy())
        for value, part in table.groupby(column)
    }


def print_figures(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Print overall figures, then those of every group, one a line."""
    print(f"{title:45s} {'BA':>6} {'AUC':>6} {'sens':>6} {'spec':>6}")
    groups = {name: figures for part in list(metrics)[1:] for name, figures in metrics[part].items()}
    for name, figures in {"overall": metrics["overall"], **groups}.items():
        shown = [figures[key] for key in ("balanced_accuracy", "roc_auc", "sensitivity", "specificity")]
        print(f"{name:45s} " + " ".join(f"{figure:6.4f}" for figure in shown))
    for name in ("balanced_accuracy", "roc_auc"):
        low, high = metrics["overall"][f"{name}_interval_95"]
        print(f"95 % interval of {name}, bootstrap by case: {low:.4f} to {high:.4f}")


def _plot(table: pd.DataFrame, out: Path) -> None:
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
            style = {"color": "black", "linewidth": 2} if name == "overall" else {"linewidth": 1}
            axes.plot(false_positive, true_positive, label=f"{name} {area:.3f}", **style)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="Out of fold ROC (AUC)", aspect="equal")
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


def export(
    plan: "Plan[AtypicalRecipe]",
    crops: "Crops",
    folds: Sequence[int],
    subclasses: Sequence[str],
    calibration: Calibration,
    metrics: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> None:
    """Write OUT/model/<system>/: model.yaml and one fp16 safetensors file a fold.

    Every fold's network has the calibration, which was fitted on single networks, before the mean.
    """
    system, part = plan.system, plan.system.classifier
    assert part is not None
    folder = out / "model" / system.system
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for fold in folds:
        target = folder / f"fold{fold}.safetensors"
        shutil.copyfile(out / f"fold{fold}" / "weights.safetensors", target)
        sha256 = hashlib.sha256(target.read_bytes()).hexdigest()
        members.append(ClassifierWeights(weights=target.name, sha256=sha256, calibration=calibration))
    options = part.options | {"num_classes": 1 + len(subclasses)}
    recipe = msgspec.to_builtins(plan.training) | {"subclasses": list(subclasses), "crops": len(crops)}
    exported = msgspec.structs.replace(
        system,
        classifier=msgspec.structs.replace(part, options=options, members=tuple(members)),
        training={"classifier": recipe},
        made=Made(
            code=commit(),
            data=tuple(DataSource(set=name) for name in crops.sets),
            pretrained=system.made.pretrained,
            metrics=_plain({"out_of_fold": metrics["overall"]}),
        ),
    )
    write_model(folder, exported)
    print(f"exported {folder}: run it with inference.py --model {out / 'model'}")
