"""python -m midog evaluate: predictions against a ground truth, with the organisers' figures.

Ground truth and metrics.json have the organisers' format, and what their evaluation refuses is refused here
(DeepMicroscopy, MIDOG25_T1_evaluation_docker and MIDOG25_T2_evaluation_docker, evaluate.py). Predictions are read from
a folder of jobs as the platform lays them out, or from a plain folder with one file an image.
"""

import contextlib
import json
import math
from pathlib import Path

import numpy as np

from midog import job, metrics
from midog.errors import UserError

METRICS_NAME = "metrics.json"
RESULT_NAMES = {socket.track: socket.result_name for socket in job.SOCKETS.values()}
INPUT_SLUGS = {socket.track: slug for slug, socket in job.SOCKETS.items()}
CLASSES = ("normal", "atypical")
MOST_PROBLEMS = 50  # lines that are shown of a list of problems
FIGURE = job.POINT_NAMES[0]


# --- ground truth -------------------------------------------------------------


def read_ground_truth(path, track):
    """Read the organisers' ground truth.

    Args:
        path: JSON. Track 1: {image: {"annotations": [[x, y, z], ...] in mm, "tumor domain", "roi type"}}.
            Track 2: [{"image", "labels": ["normal" or "atypical", ...], "tumordomains": [...]}, ...].
        track: 1 or 2.

    Returns:
        dict from an image's name to its mapping, in the file's order.

    Raises:
        UserError: not this track's format.
    """
    content = _read_json(path, "give --ground-truth a file in the organisers' format")
    try:
        if track == 2:
            if not isinstance(content, list):
                raise ValueError("not a list of stacks")
            content = {entry["image"]: entry for entry in content}
        if not isinstance(content, dict) or not content:
            raise ValueError("no image in it")
        for image, truth in content.items():
            try:
                _check_truth(truth, track)
            except KeyError as error:
                raise ValueError(f"{image}: {error} is missing") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{image}: {error}") from None
        if len({isinstance(domain, str) for truth in content.values() for domain in _domains(truth, track)}) > 1:
            raise ValueError("tumour domains are numbers or texts, not both")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a ground truth of Track {track} ({error}); see resources/data/ground_truth.py"
        ) from None
    return content


def _read_json(path, remedy):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None


def _check_truth(truth, track):
    if track == 1:
        if truth["roi type"] not in metrics.ROI_TYPES:
            raise ValueError(f"roi type {truth['roi type']!r}; {', '.join(metrics.ROI_TYPES)} expected")
        for place in truth["annotations"]:
            if len(place) != 3 or not all(map(job.is_finite, place)):
                raise ValueError(f"annotation {place!r}; x, y and z in mm expected")
    else:
        if not 0 < len(truth["labels"]) == len(truth["tumordomains"]):
            raise ValueError("labels and as many tumordomains expected")
        unknown = [label for label in truth["labels"] if label not in CLASSES]
        if unknown:
            raise ValueError(f"label {unknown[0]!r}; {' or '.join(CLASSES)} expected")
    for domain in _domains(truth, track):
        if not isinstance(domain, int | str):
            raise ValueError(f"tumour domain {domain!r}; a number or a text expected")


def _domains(truth, track):
    return [truth["tumor domain"]] if track == 1 else truth["tumordomains"]


# --- predictions --------------------------------------------------------------


def find_results(folder, track, images):
    """Which result file belongs to which image.

    Args:
        folder: with `predictions.json` and the jobs' folders, as the platform lays them out; or with one file an image:
            IMAGE.json or IMAGE/mitotic-figures.json (for Track 2 its result's name), IMAGE with or without its suffix.
        track: 1 or 2.
        images: names in the ground truth.

    Returns:
        list of (image, path) in the order of the jobs, or of the images; list of problems, a line each.

    Raises:
        UserError: no result at all; a broken predictions.json.
    """
    folder = Path(folder)
    if (folder / "predictions.json").exists():
        found, problems = _results_of_jobs(folder, track, images)
    else:
        found, problems = _results_by_name(folder, track, images)
    if not found and not problems:
        raise UserError(
            f"{folder}: no result of Track {track}; "
            f"predictions.json, or IMAGE.json or IMAGE/{RESULT_NAMES[track]} an image expected"
        )
    return found, problems


def _results_of_jobs(folder, track, images):
    path = folder / "predictions.json"
    jobs = _read_json(path, "give --predictions the folder of the jobs")
    output_slug = Path(RESULT_NAMES[track]).stem
    found, problems = [], []
    for number, entry in enumerate(jobs if isinstance(jobs, list) else [None]):
        try:
            slugs = {value["interface"]["slug"]: value for value in entry["inputs"]}
            if set(slugs) != {INPUT_SLUGS[track]}:
                problems.append(f"{path}: job {entry['pk']}: input {', '.join(slugs)}; {INPUT_SLUGS[track]} expected")
                continue
            image = slugs[INPUT_SLUGS[track]]["image"]["name"]
            outputs = {value["interface"]["slug"]: value["interface"]["relative_path"] for value in entry["outputs"]}
            if output_slug not in outputs:
                problems.append(f"{path}: job {entry['pk']}: no output {output_slug}")
                continue
            result = folder / entry["pk"] / "output" / outputs[output_slug]
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: entry {number} is no job with pk, inputs and outputs; copy the platform's file again"
            ) from None
        if image in images:
            found.append((image, result))
        else:
            problems.append(f"{path}: job {entry['pk']}: image {image} is not in the ground truth")
    return found, problems


def _results_by_name(folder, track, images):
    stems = [Path(image).stem for image in images]
    known = {stem: image for stem, image in zip(stems, images, strict=True) if stems.count(stem) == 1}
    known |= {image: image for image in images}
    paths = {path: path.stem for path in sorted(folder.glob("*.json")) if path.name != METRICS_NAME}
    paths |= {path: path.parent.name for path in sorted(folder.glob(f"*/{RESULT_NAMES[track]}"))}
    by_image, problems = {}, []
    for path, name in paths.items():
        if name not in known:
            problems.append(f"{path}: image {name} is not in the ground truth")
        elif known[name] in by_image:
            problems.append(f"{path}: a second result of {known[name]}, after {by_image[known[name]]}")
        else:
            by_image[known[name]] = path
    return [(image, by_image[image]) for image in images if image in by_image], problems


def read_cases(track, truths, folder, warn):
    """Read and check every prediction.

    Args:
        track: 1 or 2.
        truths: of `read_ground_truth`.
        folder: see `find_results`.
        warn: called with one line for images that are predicted never or twice.

    Returns:
        list of `midog.metrics.DetectionCase` (Track 1) or `StackCase` (Track 2), in the order of `find_results`.

    Raises:
        UserError: what the organisers' evaluation would refuse, all of it, a line each.
    """
    found, problems = find_results(folder, track, list(truths))
    cases = []
    for image, path in found:
        try:
            result = _read_json(path, "write it again")
        except UserError as error:
            problems.append(str(error))
            continue
        wrong = list((_point_problems if track == 1 else _page_problems)(result, truths[image]))
        problems += [f"{path}: {problem}" for problem in wrong]
        if not wrong:
            cases.append((_detection_case if track == 1 else _stack_case)(image, truths[image], result))
    if problems:
        more = len(problems) - MOST_PROBLEMS
        shown = problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise UserError(
            "\n".join([f"{folder}: the organisers' evaluation refuses these predictions; mend these:", *shown])
        )
    answered = {image for image, _ in found}
    if absent := len(truths) - len(answered):
        names = ", ".join([image for image in truths if image not in answered][:5] + ["..."] * (absent > 5))
        warn(
            f"{absent} of {len(truths)} images of the ground truth have no prediction ({names}): "
            "the organisers leave them out, so nothing in them counts as missed"
        )
    if twice := len(found) - len(answered):
        warn(f"{twice} predictions are a second one of their image: the organisers count both")
    return cases


def given_spacings(track, truths, folder):
    """um/px by image, where predict was told one: it leaves a note beside its result.

    Args:
        track, truths, folder: as `read_cases`.
    """
    spacings = {}
    for image, path in find_results(folder, track, list(truths))[0]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            spacings[image] = json.loads((path.parent / "about.json").read_text(encoding="utf-8"))["um_per_px_given"]
    return spacings


def _point_problems(result, _):
    """What the organisers refuse in a Track 1 result, a line each."""
    if not isinstance(result, dict) or not isinstance(result.get("points"), list):
        yield 'no "points", a list, in it'
        return
    low, high = job.EVALUATED_MM
    for number, point in enumerate(result["points"]):
        where = f"points[{number}]"
        if not isinstance(point, dict):
            yield f"{where}: {point!r} is no dictionary"
            continue
        missing = [key for key in ("name", "point", "probability") if key not in point]
        if missing:
            yield f"{where}: {', '.join(missing)} is missing"
            continue
        if point["name"] not in job.POINT_NAMES:
            yield f"{where}: name {point['name']!r}; {' or '.join(job.POINT_NAMES)} expected"
        if not job.is_finite(point["probability"]):
            yield f"{where}: probability {point['probability']!r}; a number expected"
        place = point["point"]
        if not isinstance(place, list) or len(place) != 3 or not all(map(job.is_finite, place)):
            yield f"{where}: point {place!r}; x, y and z in mm expected"
        elif not all(low <= value <= high for value in place[:2]):
            yield f"{where}: x {place[0]:g}, y {place[1]:g}; {low} to {high} mm expected (are these pixels?)"


def _page_problems(result, truth):
    """What the organisers refuse in a Track 2 result, a line each."""
    if not isinstance(result, list):
        yield "not a list"
        return
    if len(result) != len(truth["labels"]):
        yield f"{len(result)} entries, the ground truth has {len(truth['labels'])} pages"
    for number, page in enumerate(result):
        where = f"[{number}]"
        if not isinstance(page, dict):
            yield f"{where}: {page!r} is no dictionary"
            continue
        missing = [key for key in ("class", "confidence") if key not in page]
        if missing:
            yield f"{where}: {', '.join(missing)} is missing"
            continue
        if page["class"] not in CLASSES:
            yield f"{where}: class {page['class']!r}; {' or '.join(CLASSES)} expected"
        if not isinstance(page["confidence"], float):
            yield f"{where}: confidence {page['confidence']!r} is no float (write 1.0, not 1)"
        elif not math.isfinite(page["confidence"]):
            yield f"{where}: confidence {page['confidence']!r}; a finite number expected"


def _detection_case(image, truth, result):
    points = result["points"]
    return metrics.DetectionCase(
        image,
        truth["tumor domain"],
        truth["roi type"],
        np.array(truth["annotations"], np.float64).reshape(-1, 3),
        np.array([point["point"] for point in points], np.float64).reshape(-1, 3),
        np.array([point["name"] == FIGURE for point in points], bool),
        np.array([point["probability"] for point in points], np.float64),
    )


def _stack_case(image, truth, result):
    return metrics.StackCase(
        image,
        np.array(truth["tumordomains"]),
        np.array([label == "atypical" for label in truth["labels"]], bool),
        np.array([page["class"] == "atypical" for page in result], bool),
        np.array([page["confidence"] for page in result], np.float64),
    )


# --- figures ------------------------------------------------------------------


def metrics_content(track, cases):
    """What metrics.json holds, in the organisers' layout; their NaN is null, as the platform makes it."""
    if track == 2:
        return {"results": {}, "aggregates": _without_nan(metrics.stack_aggregates(cases))}
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
        for case in cases
    ]
    return {"results": results, "aggregates": _without_nan(metrics.detection_aggregates(cases))}


def _without_nan(values):
    return {
        name: _without_nan(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and math.isnan(value) else value)
        for name, value in values.items()
    }


def table_of(track, cases, aggregates):
    """The figures as text.

    Args:
        track: 1 or 2.
        cases: of `read_cases`.
        aggregates: of `metrics_content`.

    Returns:
        rows: list of lists of str, the column names first; notes: list of str below the table.
    """
    return (_detection_table if track == 1 else _stack_table)(cases, aggregates)


def _detection_table(cases, aggregates):
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


def _stack_table(cases, aggregates):
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


def print_table(rows, notes, log):
    """Print a table with aligned columns, its notes below."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        log("  ".join(texts))
    for note in notes:
        log(note)


def run(arguments, log, warn):
    """Evaluate, print, and write metrics.json, plots and evaluation.html where --out says.

    Args:
        arguments: track, ground_truth, predictions, out and images of the command line.
        log, warn: called with one line each.
    """
    track, out = arguments.track, arguments.out
    if arguments.images and not out:
        raise UserError(f"{arguments.images}: --images is for the gallery of the page; give --out too")
    truths = read_ground_truth(arguments.ground_truth, track)
    said = []

    def tell(text):
        said.append(text)
        warn(text)

    cases = read_cases(track, truths, arguments.predictions, tell)
    content = metrics_content(track, cases)
    rows, notes = table_of(track, cases, content["aggregates"])
    notes.append(_interval_note(track, cases))
    print_table(rows, [*(f"WARNING: {text}" for text in said), *notes], log)
    if not out:
        return
    from midog.report.evaluation_page import write_page

    job.check_writable(out)
    job.write_result(out / METRICS_NAME, content)
    log(f"metrics {out / METRICS_NAME}")
    title = f"Track {track}: {arguments.predictions} against {arguments.ground_truth}"
    spacings = given_spacings(track, truths, arguments.predictions)
    log(f"page {write_page(track, cases, title, rows, notes, said, out, warn, arguments.images, spacings)}")


def _interval_note(track, cases):
    name, metric = metrics.RANKING[track]
    low, high = metrics.bootstrap_by_image([case.counts for case in cases], metric)
    unit = {1: "image", 2: "stack"}[track]
    return f"95 % interval of the overall {name}, bootstrap by {unit}: {low:.4f} to {high:.4f}"
