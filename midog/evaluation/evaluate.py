"""python -m midog evaluate: predictions, or a system, against a ground truth, with the organisers' figures.

metrics.json has the organisers' format (DeepMicroscopy, MIDOG25_T1_evaluation_docker and MIDOG25_T2_evaluation_docker,
evaluate.py).
"""

import logging
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from midog.errors import UserError
from midog.evaluation import metrics
from midog.evaluation.cases import METRICS_NAME
from midog.evaluation.held_out import evaluate_held_out, evaluate_trainings, folds_in, rule_of
from midog.evaluation.inputs import Inputs, read_inputs
from midog.evaluation.metrics import Case, DetectionCase, StackCase
from midog.evaluation.operating_point import best_balanced_accuracy
from midog.files import check_writable, write_json

logger = logging.getLogger(__name__)

TRAINED = "trained on"


def metrics_content(track: int, cases: Sequence[Case]) -> dict[str, Any]:
    """What metrics.json holds, in the organisers' layout; their NaN is null, as the platform makes it.

    Of Track 2 operating_point comes after it: the best balanced accuracy that any one threshold gives, overall and by
    domain, and what the predicted classes lose to it.
    """
    if track == 2:
        stacks = cast("Sequence[StackCase]", cases)
        groups = {"overall": stacks} | metrics.stack_strata(stacks)
        lost = {name: operating_point_of(chosen) for name, chosen in groups.items()}
        return _without_nan({"results": {}, "aggregates": metrics.stack_aggregates(stacks), "operating_point": lost})
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


def operating_point_of(stacks: Sequence[StackCase]) -> dict[str, float]:
    """balanced_accuracy, best_balanced_accuracy and lost of all pages of some stacks; nan without both classes."""
    pages = metrics.pooled(stacks)
    found = metrics.classification_metrics(pages.labels, pages.scores, pages.called)["balanced_accuracy"]
    best = best_balanced_accuracy(pages.labels, pages.scores)
    return {"balanced_accuracy": found, "best_balanced_accuracy": best, "lost": best - found}


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and math.isnan(value) else value)
        for name, value in values.items()
    }


def table_of(track: int, inputs: Inputs, content: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """The figures as text.

    Args:
        track: 1 or 2.
        inputs: of `read_inputs`.
        content: of `metrics_content`.

    Returns:
        rows: list of lists of str, the column names first; notes: list of str below the table.
    """
    groups: Mapping[str, Sequence[Case]]
    if track == 1:
        groups = by_kind = detection_groups(inputs)
        rows, notes = _detection_table(by_kind, inputs.areas)
        notes += [*count_notes(by_kind["overall"]), *confidence_notes(inputs), *inputs.notes]
    else:
        stacks = cast("list[StackCase]", inputs.cases)
        groups = by_domain = {"overall": stacks} | metrics.stack_strata(stacks)
        rows, notes = _stack_table(by_domain, content, inputs.names)
    if inputs.trained:
        marked = [any(case.image in inputs.trained for case in chosen) for chosen in groups.values()]
        rows[0].append("")
        for row, mark in zip(rows[1:], marked, strict=True):
            row.append(TRAINED * mark)
        notes.append(f"{TRAINED}: holds images that the system learned from, so the figures there are no test.")
    return rows, notes


def detection_groups(inputs: Inputs) -> dict[str, list[DetectionCase]]:
    """Overall, then the images of each set, tumour, scanner and ROI type where there is more than one of a kind.

    Last come the images without any labelled figure, where false positives are counted and nothing can be found.
    """
    cases = cast("list[DetectionCase]", inputs.cases)
    kinds: dict[str, list[Any]] = {
        "set": [inputs.sets.get(case.image) for case in cases],
        "tumour": [case.domain for case in cases],
        "scanner": [inputs.scanners.get(case.image) for case in cases],
        "ROI type": [case.roi_type for case in cases],
    }
    groups = {"overall": cases}
    for kind, values in kinds.items():
        known = set(values)
        if len(known) > 1:
            groups |= {
                f"{kind} {one}": [case for case, value in zip(cases, values, strict=True) if value == one]
                for one in sorted(known)
            }
    empty = [case for case in cases if not case.positives]
    return groups | ({"tissue without figures": empty} if empty else {})


def _detection_table(
    groups: Mapping[str, Sequence[DetectionCase]], areas: Mapping[str, float]
) -> tuple[list[list[str]], list[str]]:
    rows = [["", "images", "figures", "TP", "FP", "FN", "F1", "95 % interval", "precision", "recall", "AP", "FROC AUC"]]
    rows[0] += ["mm2", "FP/mm2"] * bool(areas) + ["candidates"]
    for name, cases in groups.items():
        counts = np.array([case.counts for case in cases])
        true, missed, false = counts.sum(axis=0).tolist()
        low, high = metrics.bootstrap_by_image(counts, metrics.f1)
        figures = metrics.detection_figures(cases)
        found = true + missed > 0
        shown = [
            (f"{figures['f1']:.4f}", found),
            (f"{low:.4f} to {high:.4f}", found and len(cases) > 1),
            (f"{figures['precision']:.4f}", found and true + false > 0),
            (f"{figures['recall']:.4f}", found),
            (f"{figures['AP']:.4f}", found),
            (f"{figures['froc_auc']:.4f}", found and not math.isnan(figures["froc_auc"])),
        ]
        texts = [text if defined else "n/a" for text, defined in shown]
        if areas:
            area = sum(areas[case.image] for case in cases)
            texts += [f"{area:.2f}", f"{false / area:.2f}" if area else "n/a"]
        texts.append(str(sum(len(case.scores) for case in cases)))
        rows.append([name, *map(str, (len(cases), true + missed, true, false, missed)), *texts])
    notes = [
        "95 % interval: of F1, bootstrap by image. "
        "FROC AUC: area up to 8 false positives an image, not normalised; 8 is the most."
    ]
    if any("n/a" in row for row in rows):
        notes.append(
            "n/a: not defined without figures or without points, an interval not of one image; "
            "metrics.json has the organisers' stand-ins."
        )
    return rows, notes


def count_notes(cases: Sequence[DetectionCase]) -> list[str]:
    """How well figures are counted, in two lines."""
    error = metrics.count_error(cases)
    slope, limits = "", ""
    if not math.isnan(error.slope):
        slope = (
            f": with each labelled figure the predicted count rises by {error.slope:.2f} (least squares; 1 is right)"
        )
    if not math.isnan(error.low):
        limits = f"; in 95 % of images {error.low:+.2f} to {error.high:+.2f}"
    return [
        f"Counts of {error.images} images{slope}.",
        f"Predicted minus labelled figures an image: {error.bias:+.2f} on average (bias){limits} "
        "(limits of agreement, Bland and Altman, Lancet 1986;327:307).",
    ]


def confidence_notes(inputs: Inputs) -> list[str]:
    """How many figures were found by the readers' confidence in the label, in a line; none where all were as sure."""
    labelled: Counter[float] = Counter()
    missed: Counter[float] = Counter()
    for case in cast("list[DetectionCase]", inputs.cases):
        known = inputs.confidences.get(case.image, {})
        sure = [known.get(tuple(place)) for place in case.truths.tolist()]
        labelled.update(value for value in sure if value is not None)
        missed.update(value for value in (sure[number] for number in case.missed) if value is not None)
    if len(labelled) < 2:
        return []
    found = [
        f"{value:g}: {count - missed[value]} of {count}" for value, count in sorted(labelled.items(), reverse=True)
    ]
    return [f"Figures found by the readers' confidence in the label: {', '.join(found)}."]


def _stack_table(
    groups: Mapping[str, Sequence[StackCase]], content: dict[str, Any], called: Mapping[str, str]
) -> tuple[list[list[str]], list[str]]:
    rows = [["", "crops", "TP", "FP", "FN", "TN", "balanced accuracy", "AUC", "sensitivity", "specificity", "accuracy"]]
    rows[0] += ["best", "lost"]
    names = ("balanced_accuracy", "roc_auc", "sensitivity", "specificity", "accuracy")
    aggregates = content["aggregates"]
    for stratum, chosen in groups.items():
        part = metrics.pooled(chosen)
        figures = aggregates.get(stratum) or {name: aggregates[f"overall_{name}"] for name in names}
        true, false, missed, rejected = counts = part.counts
        both = true + missed > 0 and false + rejected > 0
        defined = both, both, true + missed, false + rejected, len(part.labels)
        texts = [f"{figures[name]:.4f}" if fine else "n/a" for name, fine in zip(names, defined, strict=True)]
        at_best = content["operating_point"][stratum]
        texts += [f"{at_best[name]:.4f}" if both else "n/a" for name in ("best_balanced_accuracy", "lost")]
        title = metrics.spoken(stratum) + (f", {called[stratum]}" if stratum in called else "")
        rows.append([title, *map(str, (len(part.labels), *counts)), *texts])
    low, high = metrics.bootstrap_by_image([case.counts for case in groups["overall"]], metrics.balanced_accuracy)
    notes = [
        f"95 % interval of the overall balanced accuracy, bootstrap by stack: {low:.4f} to {high:.4f}",
        "best: the highest balanced accuracy that any one threshold gives, chosen on these crops themselves; "
        "lost: how much lower the predicted classes' is.",
    ]
    if any("n/a" in row for row in rows):
        notes.append("n/a: a class has no crops there; metrics.json has the organisers' stand-ins (0, or null).")
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
        arguments: of `midog.evaluation.inputs.add_arguments`, and model, system, out and images.
    """
    track, out = arguments.track, arguments.out
    if arguments.images and not out:
        raise UserError(f"{arguments.images}: --images is for the gallery of the page; give --out too")
    if arguments.folds:
        _evaluate_folds(arguments)
        return
    inputs = read_inputs(arguments, arguments.model, arguments.system)
    cases, remarks = inputs.cases, inputs.remarks
    for text in remarks:
        logger.warning(text)
    content = metrics_content(track, cases)
    rows, notes = table_of(track, inputs, content)
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


def _evaluate_folds(arguments: Namespace) -> None:
    trainings, out = arguments.folds, arguments.out
    others = (arguments.predictions, arguments.model, arguments.system, arguments.split, arguments.fold)
    if len(trainings) > 1:
        if arguments.track == 1 or any((*others, arguments.images)):
            raise UserError(
                f"{trainings[0]}: --folds is for Track 2 and has the predictions; "
                "give --track 2, and leave --predictions, --model, --system, --split, --fold and --images out"
            )
        if out:
            check_writable(out, "--out")
        evaluate_trainings(trainings, out)
    else:
        (training,) = trainings
        if arguments.track == 1 or any((*others, out)):
            raise UserError(
                f"{training}: --folds is for Track 2, has the predictions and writes there; "
                "give --track 2, and leave --predictions, --model, --system, --split, --fold and --out out"
            )
        folds = folds_in(training)
        check_writable(training, "--folds")
        evaluate_held_out(training, folds, rule_of(training))
        out = training
    if out:
        logger.info(f"metrics {out / METRICS_NAME}")
