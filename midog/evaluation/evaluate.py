"""python -m midog evaluate: predictions against a ground truth, with the organisers' figures.

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
from midog.evaluation.cases import METRICS_NAME, given_spacings, read_cases, read_ground_truth
from midog.evaluation.metrics import Case, DetectionCase, StackCase
from midog.files import check_writable, write_json

logger = logging.getLogger(__name__)


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


def table_of(track: int, cases: Sequence[Case], aggregates: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """The figures as text.

    Args:
        track: 1 or 2.
        cases: of `read_cases`.
        aggregates: of `metrics_content`.

    Returns:
        rows: list of lists of str, the column names first; notes: list of str below the table.
    """
    if track == 1:
        return _detection_table(cast("Sequence[DetectionCase]", cases), aggregates)
    return _stack_table(cast("Sequence[StackCase]", cases), aggregates)


def _detection_table(cases: Sequence[DetectionCase], aggregates: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    rows = [["", "images", "figures", "TP", "FP", "FN", "F1", "precision", "recall", "AP", "FROC AUC"]]
    notes = ["FROC AUC: area up to 8 false positives an image, not normalised; 8 is the most."]
    marked = set()
    for stratum, chosen in ({"overall": cases} | metrics.detection_strata(cases)).items():
        if not chosen:
            rows.append([metrics.spoken(stratum), "0", *["no cases"] * 9])
            marked.add("no cases")
            continue
        prefix, f1 = ("", "f1_score") if stratum == "overall" else (f"{stratum}_", "f1")
        true, missed, false = (sum(case.counts[index] for case in chosen) for index in range(3))
        shown = [aggregates[prefix + name] for name in (f1, "precision", "recall", "AP", "froc_auc")]
        defined = [true + missed + false, true + false, true + missed, true + missed, shown[4] is not None]
        texts = [f"{value:.4f}" if fine else "n/a" for value, fine in zip(shown, defined, strict=True)]
        if "n/a" in texts:
            marked.add("n/a")
        rows.append([metrics.spoken(stratum), *map(str, (len(chosen), true + missed, true, false, missed)), *texts])
    if "no cases" in marked:
        notes.append(
            "no cases: metrics.json has the organisers' stand-ins (F1 1.0, AP -1, FROC null); not to be averaged."
        )
    if "n/a" in marked:
        notes.append("n/a: not defined without figures or without points; metrics.json has the organisers' stand-ins.")
    return rows, notes


def _stack_table(cases: Sequence[StackCase], aggregates: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    rows = [["", "crops", "TP", "FP", "FN", "TN", "balanced accuracy", "AUC", "sensitivity", "specificity", "accuracy"]]
    notes = []
    names = ("balanced_accuracy", "roc_auc", "sensitivity", "specificity", "accuracy")
    for stratum, chosen in ({"overall": cases} | metrics.stack_strata(cases)).items():
        part = metrics.pooled(chosen)
        figures = aggregates.get(stratum) or {name: aggregates[f"overall_{name}"] for name in names}
        true, false, missed, rejected = counts = part.counts
        both = true + missed > 0 and false + rejected > 0
        defined = both, both, true + missed, false + rejected, len(part.labels)
        texts = [f"{figures[name]:.4f}" if fine else "n/a" for name, fine in zip(names, defined, strict=True)]
        if "n/a" in texts:
            notes = ["n/a: a class has no crops there; metrics.json has the organisers' stand-ins (0, or null)."]
        rows.append([metrics.spoken(stratum), *map(str, (len(part.labels), *counts)), *texts])
    return rows, notes


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
        arguments: track, ground_truth, predictions, out and images of the command line.
    """
    track, out = arguments.track, arguments.out
    if arguments.images and not out:
        raise UserError(f"{arguments.images}: --images is for the gallery of the page; give --out too")
    truths = read_ground_truth(arguments.ground_truth, track)
    cases, remarks = read_cases(track, truths, arguments.predictions)
    for text in remarks:
        logger.warning(text)
    content = metrics_content(track, cases)
    rows, notes = table_of(track, cases, content["aggregates"])
    notes.append(_interval_note(track, cases))
    _log_table(rows, [*(f"WARNING: {text}" for text in remarks), *notes])
    if not out:
        return
    from midog.evaluation.page import write_page

    check_writable(out, "--out")
    write_json(out / METRICS_NAME, content)
    logger.info(f"metrics {out / METRICS_NAME}")
    title = f"Track {track}: {arguments.predictions} against {arguments.ground_truth}"
    spacings = given_spacings(track, truths, arguments.predictions)
    logger.info(f"page {write_page(track, cases, title, rows, notes, remarks, out, arguments.images, spacings)}")


def _interval_note(track: int, cases: Sequence[Case]) -> str:
    name, metric = metrics.RANKING[track]
    low, high = metrics.bootstrap_by_image([case.counts for case in cases], metric)
    unit = {1: "image", 2: "stack"}[track]
    return f"95 % interval of the overall {name}, bootstrap by {unit}: {low:.4f} to {high:.4f}"
