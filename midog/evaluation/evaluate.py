"""python -m midog evaluate: predictions, or a system, against a ground truth, with the organisers' figures.

metrics.json has the organisers' format (DeepMicroscopy, MIDOG25_T1_evaluation_docker and MIDOG25_T2_evaluation_docker,
evaluate.py).
"""

import logging
import math
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, cast

from midog.errors import UserError
from midog.evaluation import metrics
from midog.evaluation.cases import METRICS_NAME
from midog.evaluation.held_out import evaluate_held_out, folds_in
from midog.evaluation.inputs import Inputs, read_inputs
from midog.evaluation.metrics import Case, DetectionCase, StackCase
from midog.files import check_writable, write_json

logger = logging.getLogger(__name__)

TRAINED = "trained on"


def metrics_content(track: int, cases: Sequence[Case]) -> dict[str, Any]:
    """What metrics.json holds, in the organisers' layout; their NaN is null, as the platform makes it."""
    if track == 2:
        stacks = cast("Sequence[StackCase]", cases)
        return {"results": {}, "aggregates": _without_nan(metrics.stack_aggregates(stacks))}
    images = cast("Sequence[DetectionCase]", cases)
    results = [
        {
            "image": case.image,
            "gt": [],
            "tumor_domain": case.domain,
            "pred": [
                [*place, int(accepted), score]
                for place, accepted, score in zip(
                    case.points.tolist(), case.accepted.tolist(), case.scores.tolist(), strict=True
                )
            ],
            "metrics": dict(case.counts._asdict()),
            "roi_type": case.roi_type,
        }
        for case in images
    ]
    return {"results": results, "aggregates": _without_nan(metrics.detection_aggregates(images))}


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and math.isnan(value) else value)
        for name, value in values.items()
    }


def table_of(track: int, inputs: Inputs, aggregates: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """The figures as text.

    Args:
        track: 1 or 2.
        inputs: of `read_inputs`.
        aggregates: of `metrics_content`.

    Returns:
        rows: list of lists of str, the column names first; notes: list of str below the table.
    """
    if track == 1:
        rows, strata, notes = _detection_table(inputs, aggregates)
    else:
        rows, strata, notes = _stack_table(cast("Sequence[StackCase]", inputs.cases), aggregates)
    for row, stratum in zip(rows[1:], strata, strict=True):
        row[0] = f"{metrics.spoken(stratum)}, {inputs.names[stratum]}" if stratum in inputs.names else row[0]
    if inputs.trained:
        rows[0].append("")
        for row, stratum in zip(rows[1:], strata, strict=True):
            row.append(TRAINED * (stratum in inputs.trained))
        notes.append(f"{TRAINED}: holds images that the system learned from, so the figures there are no test.")
    return rows, notes


def _detection_table(inputs: Inputs, aggregates: dict[str, Any]) -> tuple[list[list[str]], list[str], list[str]]:
    cases = cast("Sequence[DetectionCase]", inputs.cases)
    rows = [["", "images", "figures", "TP", "FP", "FN", "F1", "precision", "recall", "AP", "FROC AUC"]]
    if inputs.areas:
        rows[0] += ["mm2", "FP/mm2", "candidates"]
    notes = ["FROC AUC: area up to 8 false positives an image, not normalised; 8 is the most."]
    marked = set()
    strata = {"overall": cases} | metrics.detection_strata(cases)
    for stratum, chosen in strata.items():
        if not chosen:
            rows.append([metrics.spoken(stratum), "0", *["no cases"] * (len(rows[0]) - 2)])
            marked.add("no cases")
            continue
        prefix, f1 = ("", "f1_score") if stratum == "overall" else (f"{stratum}_", "f1")
        true, missed, false = (sum(case.counts[index] for case in chosen) for index in range(3))
        shown = [aggregates[prefix + name] for name in (f1, "precision", "recall", "AP", "froc_auc")]
        defined = [true + missed + false, true + false, true + missed, true + missed, shown[4] is not None]
        texts = [f"{value:.4f}" if fine else "n/a" for value, fine in zip(shown, defined, strict=True)]
        if "n/a" in texts:
            marked.add("n/a")
        if inputs.areas:
            area = sum(inputs.areas[case.image] for case in chosen)
            texts += [f"{area:.2f}", f"{false / area:.2f}", str(sum(len(case.scores) for case in chosen))]
        rows.append([metrics.spoken(stratum), *map(str, (len(chosen), true + missed, true, false, missed)), *texts])
    if "no cases" in marked:
        notes.append(
            "no cases: metrics.json has the organisers' stand-ins (F1 1.0, AP -1, FROC null); not to be averaged."
        )
    if "n/a" in marked:
        notes.append("n/a: not defined without figures or without points; metrics.json has the organisers' stand-ins.")
    return rows, list(strata), notes


def _stack_table(
    cases: Sequence[StackCase], aggregates: dict[str, Any]
) -> tuple[list[list[str]], list[str], list[str]]:
    rows = [["", "crops", "TP", "FP", "FN", "TN", "balanced accuracy", "AUC", "sensitivity", "specificity", "accuracy"]]
    notes = []
    names = ("balanced_accuracy", "roc_auc", "sensitivity", "specificity", "accuracy")
    strata = {"overall": cases} | metrics.stack_strata(cases)
    for stratum, chosen in strata.items():
        part = metrics.pooled(chosen)
        figures = aggregates.get(stratum) or {name: aggregates[f"overall_{name}"] for name in names}
        true, false, missed, rejected = counts = part.counts
        both = true + missed > 0 and false + rejected > 0
        defined = both, both, true + missed, false + rejected, len(part.labels)
        texts = [f"{figures[name]:.4f}" if fine else "n/a" for name, fine in zip(names, defined, strict=True)]
        if "n/a" in texts:
            notes = ["n/a: a class has no crops there; metrics.json has the organisers' stand-ins (0, or null)."]
        rows.append([metrics.spoken(stratum), *map(str, (len(part.labels), *counts)), *texts])
    return rows, list(strata), notes


def _log_table(rows: list[list[str]], notes: list[str]) -> None:
    """A table with aligned columns, its notes below."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        logger.info("  ".join(texts))
    for note in notes:
        logger.info(note)


def run(arguments: Namespace) -> None:
    """Evaluate, log, and write metrics.json, plots and evaluation.html where --out says.

    Args:
        arguments: of `midog.evaluation.inputs.add_arguments`, and model, system, out and images.
    """
    track, out = arguments.track, arguments.out
    if arguments.images and not out:
        raise UserError(f"{arguments.images}: --images is for the gallery of the page; give --out too")
    if arguments.folds:
        if track == 1 or arguments.predictions or arguments.model or arguments.system or out:
            raise UserError(
                f"{arguments.folds}: --folds is for Track 2, has the predictions and writes there; "
                "give --track 2, and leave --predictions, --model, --system and --out out"
            )
        folds = folds_in(arguments.folds)
        check_writable(arguments.folds, "--folds")
        evaluate_held_out(arguments.folds, folds)
        logger.info(f"metrics {arguments.folds / METRICS_NAME}")
        return
    inputs = read_inputs(arguments, arguments.model, arguments.system)
    cases, remarks = inputs.cases, inputs.remarks
    for text in remarks:
        logger.warning(text)
    content = metrics_content(track, cases)
    rows, notes = table_of(track, inputs, content["aggregates"])
    notes.append(_interval_note(track, cases))
    _log_table(rows, [*(f"WARNING: {text}" for text in remarks), *notes])
    if not out:
        return
    from midog.evaluation.page import write_page

    check_writable(out, "--out")
    write_json(out / METRICS_NAME, content)
    logger.info(f"metrics {out / METRICS_NAME}")
    title = f"Track {track}: {inputs.source}"
    page = write_page(track, cases, title, rows, notes, remarks, out, arguments.images, inputs.spacings)
    logger.info(f"page {page}")


def _interval_note(track: int, cases: Sequence[Case]) -> str:
    name, metric = metrics.RANKING[track]
    low, high = metrics.bootstrap_by_image([case.counts for case in cases], metric)
    unit = {1: "image", 2: "stack"}[track]
    return f"95 % interval of the overall {name}, bootstrap by {unit}: {low:.4f} to {high:.4f}"
