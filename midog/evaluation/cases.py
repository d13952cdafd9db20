"""Cases of an evaluation: a ground truth, predictions, and what the organisers' evaluation refuses of them.

The ground truth has the organisers' format, and what their evaluation refuses is refused here (DeepMicroscopy,
MIDOG25_T1_evaluation_docker and MIDOG25_T2_evaluation_docker, evaluate.py). What only the platform's schema refuses,
before that, is a warning: the figures are what the evaluation would have given. Predictions are read from a folder of
jobs as the platform lays them out, or from a plain folder with one file an image.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from midog import job
from midog.about import About, read_about
from midog.detections import Detections
from midog.errors import UserError, one_line, quoted
from midog.evaluation import metrics
from midog.evaluation.metrics import Case
from midog.files import read_json
from midog.images.resolution import ASSUMED
from midog.system import System

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.json"
INPUT_SLUGS = {socket.track: slug for slug, socket in job.SOCKETS.items()}
CLASSES = ("normal", "atypical")
MAX_PROBLEMS = 50  # lines that are shown of a list of problems, or of warnings
MAX_CASES = 10  # of a set that are named in a line
Truths = dict[str, dict[str, Any]]  # the ground truth's mapping by an image's name


# --- ground truth -------------------------------------------------------------


def read_ground_truth(path: str | Path, track: int) -> Truths:
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
    content = read_json(path, "give --ground-truth a file in the organisers' format")
    try:
        truths = _by_image(content, track)
        for image, truth in truths.items():
            try:
                _check_truth(truth, track)
            except KeyError as error:
                raise ValueError(f"{image}: {error} is missing") from None
            except ValueError as error:
                raise ValueError(f"{image}: {error}") from None
        if len({isinstance(domain, str) for truth in truths.values() for domain in _domains(truth, track)}) > 1:
            raise ValueError("tumour domains are numbers or texts, not both")
    except ValueError as error:
        said = f"not a ground truth of Track {track} ({one_line(str(error))})"
        raise UserError(f"{path}: {said}; see resources/data/ground_truth.py") from None
    return truths


def _by_image(content: Any, track: int) -> Truths:
    if track == 2:
        if not isinstance(content, list):
            raise ValueError("not a list of stacks")
        if not all(isinstance(stack, dict) and isinstance(stack.get("image"), str) for stack in content):
            raise ValueError("a stack without the name of its image")
        content = {stack["image"]: stack for stack in content}
    if not isinstance(content, dict) or not content:
        raise ValueError("no image in it")
    return content


def _check_truth(truth: object, track: int) -> None:
    if not isinstance(truth, dict):
        raise ValueError(f"{quoted(truth)} is no dictionary")
    for name in ("annotations",) if track == 1 else ("labels", "tumordomains"):
        if not isinstance(truth[name], list):
            raise ValueError(f"{name} is {quoted(truth[name])}; a list expected")
    if track == 1:
        if truth["roi type"] not in metrics.ROI_TYPES:
            raise ValueError(f"roi type {quoted(truth['roi type'])}; {', '.join(metrics.ROI_TYPES)} expected")
        for place in truth["annotations"]:
            if not isinstance(place, list) or len(place) != 3 or not all(map(job.is_finite, place)):
                raise ValueError(f"annotation {quoted(place)}; x, y and z in mm expected")
            if max(map(abs, place)) > job.EVALUATED_MM[1]:
                raise ValueError(f"annotation {quoted(place)} looks like px; mm expected")
    else:
        if not 0 < len(truth["labels"]) == len(truth["tumordomains"]):
            raise ValueError("labels and as many tumordomains expected")
        unknown = [label for label in truth["labels"] if label not in CLASSES]
        if unknown:
            raise ValueError(f"label {quoted(unknown[0])}; {' or '.join(CLASSES)} expected")
    for domain in _domains(truth, track):
        if not isinstance(domain, str) and not job.is_finite(domain):
            raise ValueError(f"tumour domain {quoted(domain)}; a number or a text expected")


def _domains(truth: dict[str, Any], track: int) -> list[float | str]:
    return [truth["tumor domain"]] if track == 1 else truth["tumordomains"]


# --- predictions --------------------------------------------------------------


@dataclass
class Results:
    """Which result file belongs to which image.

    Attributes:
        found: (image, path) in the order of the jobs, or of the images.
        problems: a line each.
        foreign: likewise, of images that are not in the ground truth.
    """

    found: list[tuple[str, Path]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def find_results(folder: str | Path, track: int, images: Sequence[str]) -> Results:
    """Which result file belongs to which image.

    Args:
        folder: with `predictions.json` and the jobs' folders, as the platform lays them out; or with one file an image:
            IMAGE.json or IMAGE/mitotic-figures.json (for Track 2 its result's name), IMAGE with or without its suffix,
            also below folders, whose names count where the ground truth has them.
        track: 1 or 2.
        images: names in the ground truth.

    Raises:
        UserError: no result at all; a broken predictions.json.
    """
    folder = Path(folder)
    if (folder / "predictions.json").exists():
        results = _results_of_jobs(folder, track, images)
    else:
        results = _results_by_name(folder, track, images)
    if results == Results():
        raise UserError(
            f"{folder}: no result of Track {track}; "
            f"predictions.json, or IMAGE.json or IMAGE/{job.RESULT_NAMES[track]} an image expected"
        )
    return results


def _results_of_jobs(folder: Path, track: int, images: Sequence[str]) -> Results:
    path = folder / "predictions.json"
    jobs = read_json(path, "give --predictions the folder of the jobs")
    output_slug = Path(job.RESULT_NAMES[track]).stem
    results = Results()
    for number, entry in enumerate(jobs if isinstance(jobs, list) else [None]):
        try:
            slugs = sorted(job.socket_of(value)["slug"] for value in entry["inputs"])
            if slugs != [INPUT_SLUGS[track]]:
                said = f"input {', '.join(slugs) or 'missing'}; {INPUT_SLUGS[track]} expected, once"
                results.problems.append(f"{path}: job {entry['pk']}: {said}")
                continue
            image = entry["inputs"][0]["image"]["name"]
            sockets = [job.socket_of(value) for value in entry["outputs"]]
            outputs = [socket["relative_path"] for socket in sockets if socket["slug"] == output_slug]
            if not outputs:
                results.problems.append(f"{path}: job {entry['pk']}: no output {output_slug}")
                continue
            result = folder / entry["pk"] / "output" / outputs[0]  # of several the organisers, too, take the first
        except (KeyError, TypeError):
            raise UserError(
                f"{path}: entry {number} is no job with pk, inputs and outputs; copy the platform's file again"
            ) from None
        if image in images:
            results.found.append((image, result))
        else:
            results.foreign.append(f"{path}: job {entry['pk']}: image {image} is not in the ground truth")
    return results


def _results_by_name(folder: Path, track: int, images: Sequence[str]) -> Results:
    stems = [(Path(image).parent / Path(image).stem).as_posix() for image in images]
    known = {stem: image for stem, image in zip(stems, images, strict=True) if stems.count(stem) == 1}
    known |= {image: image for image in images}
    paths = {path: path.stem for path in sorted(folder.glob("*.json")) if path.name != METRICS_NAME}
    below = sorted(folder.glob(f"*/**/{job.RESULT_NAMES[track]}"))
    paths |= {path: path.parent.relative_to(folder).as_posix() for path in below}
    by_image: dict[str, Path] = {}
    results = Results()
    for path, full_name in paths.items():
        name = full_name if full_name in known else Path(full_name).name
        if name not in known:
            results.foreign.append(f"{path}: image {name} is not in the ground truth")
        elif known[name] in by_image:
            results.problems.append(f"{path}: a second result of {known[name]}, after {by_image[known[name]]}")
        else:
            by_image[known[name]] = path
    results.found = [(image, by_image[image]) for image in images if image in by_image]
    return results


def read_cases(track: int, truths: Truths, *folders: str | Path, chosen: bool = False) -> tuple[list[Case], list[str]]:
    """Read and check every prediction.

    Args:
        track: 1 or 2.
        truths: of `read_ground_truth`.
        folders: see `find_results`; each image in one of them.
        chosen: the ground truth is a choice, of a fold for one: predictions of other images are left out.

    Returns:
        list of `DetectionCase` (Track 1) or `StackCase` (Track 2), in the order of `find_results`; warnings, a line
        each, about images that are predicted never or twice, and results that the platform's schema refuses.

    Raises:
        UserError: what the organisers' evaluation would refuse, all of it, a line each; an image in two folders; no
            prediction of what was chosen.
    """
    results = _found_in(track, truths, folders)
    problems = results.problems + ([] if chosen else results.foreign)
    cases: list[Case] = []
    refused: list[str] = []
    for image, path in results.found:
        try:
            result = read_json(path, "write it again")
        except UserError as error:
            problems.append(str(error))
            continue
        truth = truths[image]
        wrong = list(_point_problems(result) if track == 1 else _crop_problems(result, truth))
        problems += [f"{path}: {problem}" for problem in wrong]
        if not wrong:
            cases.append(case_of(track, image, truth, result))
            breaches = list(job.schema_breaches(result)) if track == 1 else []  # Track 2's kind, "Anything", has none
            if breaches:
                refused.append(f"{path}: the platform's schema refuses it before the evaluation: {_first_of(breaches)}")
    named = ", ".join(map(str, folders))
    if problems:
        said = f"{named}: the organisers' evaluation refuses these predictions; mend these:"
        raise UserError("\n".join([said, *map(one_line, _cut(problems))]))
    if not cases:
        raise UserError(f"{named}: predictions of {len(results.foreign)} images, none of those chosen; choose others")
    remarks = _cut(refused)
    answered = {image for image, _ in results.found}
    if absent := len(truths) - len(answered):
        names = [image for image in truths if image not in answered]
        remarks.append(
            f"{absent} of {len(truths)} images of the ground truth have no prediction ({_few(names)}): "
            "the organisers leave them out, so nothing in them counts as missed"
        )
    guessed = [image for image, path in results.found if track == 1 and _is_guessed(read_about(path))]
    if guessed:
        remarks.append(
            f"{len(guessed)} of {len(results.found)} predictions were made with an assumed um per pixel "
            f"({_few(guessed)}): if that is wrong, so are their mm"
        )
    if twice := len(results.found) - len(answered):
        remarks.append(f"{twice} predictions are a second one of their image: the organisers count both")
    return cases, list(map(one_line, remarks))


def _first_of(breaches: Sequence[str]) -> str:
    return breaches[0] + (f" (and {len(breaches) - 1} more)" if len(breaches) > 1 else "")


def _cut(lines: Sequence[str]) -> list[str]:
    """The first lines of a list that may be long, and how many more there are."""
    more = len(lines) - MAX_PROBLEMS
    return [*lines[:MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]


def _is_guessed(about: About | None) -> bool:
    return about is not None and about.resolution is not None and about.resolution.get("source") == ASSUMED


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *["..."] * (len(names) > 5)])


def _found_in(track: int, truths: Truths, folders: Sequence[str | Path]) -> Results:
    """`find_results` of several folders; an image that an earlier one has, too, is a problem."""
    joined = Results()
    for folder in folders:
        more = find_results(folder, track, list(truths))
        before = dict(joined.found)
        joined.problems += more.problems
        joined.problems += [
            f"{path}: a second result of {image}, after {before[image]}"
            for image, path in more.found
            if image in before
        ]
        joined.found += more.found
        joined.foreign += more.foreign
    return joined


def case_of(track: int, image: str, truth: dict[str, Any], result: Any) -> Case:
    """A result that was checked, beside its truth."""
    return (_detection_case if track == 1 else _stack_case)(image, truth, result)


def counted_once(case: metrics.DetectionCase, shared: metrics.Floats) -> metrics.DetectionCase:
    """A case without what another image shows, too.

    A figure at the edge of that area takes the points along that may match it, on whichever side they lie.

    Args:
        case: of Track 1.
        shared: float64 (K, 4), rectangles x0, y0, x1, y1 in mm, the last two not included.
    """

    def inside(places: metrics.Floats) -> metrics.Mask:
        x, y = places[:, 0, None], places[:, 1, None]
        left, top, right, bottom = shared.T
        return np.asarray(((left <= x) & (x < right) & (top <= y) & (y < bottom)).any(axis=1), bool)

    def near(truths: metrics.Floats) -> metrics.Mask:
        apart = case.points[:, None, :2] - truths[None, :, :2]
        return np.asarray((np.hypot(*np.moveaxis(apart, -1, 0)) <= metrics.MATCH_MM).any(axis=1), bool)

    seen = inside(case.truths)
    counts = near(case.truths[~seen]) | ~(inside(case.points) | near(case.truths[seen]))
    return replace(case, truths=case.truths[~seen], detections=case.detections[counts])


def read_abouts(track: int, truths: Truths, *folders: str | Path) -> dict[str, About]:
    """What `predict` noted beside its results, by image; arguments as `read_cases`."""
    found = ((image, read_about(path)) for image, path in _found_in(track, truths, folders).found)
    return {image: about for image, about in found if about}


def given_spacings(track: int, truths: Truths, *folders: str | Path) -> dict[str, float | None]:
    """um/px by image, where predict was told one; arguments as `read_cases`."""
    return {image: about.um_per_px_given for image, about in read_abouts(track, truths, *folders).items()}


def training_cases(system: System, cases: Iterable[tuple[str, str]]) -> str:
    """What of some data a system was trained on, as one line for a warning; "" if nothing.

    Args:
        system: that is measured.
        cases: of each image or crop the name of its set's folder, and its case.
    """
    seen: dict[str, set[str]] = {}
    for name, case in cases:
        if system.trained_on(name, case):
            seen.setdefault(name, set()).add(case)
    named = [
        f"{name}:{','.join([*sorted(each)[:MAX_CASES], *['...'] * (len(each) > MAX_CASES)])}"
        for name, each in seen.items()
    ]
    return f"{system} was trained on {' '.join(named)}: no test" if seen else ""


def _point_problems(result: Any) -> Iterator[str]:
    """What the organisers refuse in a Track 1 result, a line each; what only the schema refuses is none of it."""
    if not isinstance(result, dict) or not isinstance(result.get("points"), list):
        yield 'no "points", a list, in it'
        return
    low, high = job.EVALUATED_MM
    for number, point in enumerate(result["points"]):
        where = f"points[{number}]"
        if not isinstance(point, dict):
            yield f"{where}: {quoted(point)} is no dictionary"
            continue
        missing = [key for key in ("name", "point", "probability") if key not in point]
        if missing:
            yield f"{where}: {', '.join(missing)} is missing"
            continue
        if point["name"] not in job.POINT_NAMES:
            yield f"{where}: name {quoted(point['name'])}; {' or '.join(job.POINT_NAMES)} expected"
        if not _counts_as_number(point["probability"]):
            yield f"{where}: probability {quoted(point['probability'])}; a number in [0, 1] expected"
        place = point["point"]
        if not isinstance(place, list) or len(place) < 3 or not all(map(_counts_as_number, place[:3])):
            yield f"{where}: point {quoted(place)}; x, y and z in mm expected"
        elif not all(low <= value <= high for value in place[:2]):
            yield f"{where}: x {place[0]:g}, y {place[1]:g}; {low} to {high} mm expected (are these pixels?)"


def _counts_as_number(value: object) -> bool:
    """Whether the organisers' code can count with it: with true and false, too, as 1 and 0."""
    return isinstance(value, bool) or job.is_finite(value)


def _crop_problems(result: Any, truth: dict[str, Any]) -> Iterator[str]:
    """What the organisers refuse in a Track 2 result, a line each."""
    if not isinstance(result, list):
        yield "not a list"
        return
    if len(result) != len(truth["labels"]):
        yield f"{len(result)} entries, the ground truth has {len(truth['labels'])} pages"
    for number, crop in enumerate(result):
        where = f"[{number}]"
        if not isinstance(crop, dict):
            yield f"{where}: {quoted(crop)} is no dictionary"
            continue
        missing = [key for key in ("class", "confidence") if key not in crop]
        if missing:
            yield f"{where}: {', '.join(missing)} is missing"
            continue
        if crop["class"] not in CLASSES:
            yield f"{where}: class {quoted(crop['class'])}; {' or '.join(CLASSES)} expected"
        if not isinstance(crop["confidence"], float):
            yield f"{where}: confidence {quoted(crop['confidence'])} is no float (write 1.0, not 1)"
        elif not math.isfinite(crop["confidence"]):
            yield f"{where}: confidence {crop['confidence']}; a finite number expected"


class _AsWritten(Detections):
    """A result with its probabilities as they are: what lies outside [0, 1] counts, though the schema refuses it."""

    def __post_init__(self) -> None:
        """Its numbers were checked when it was read."""


def _detection_case(image: str, truth: dict[str, Any], result: Any) -> metrics.DetectionCase:
    truths = np.array(truth["annotations"], np.float64).reshape(-1, 3)
    return metrics.DetectionCase(image, truth["tumor domain"], truth["roi type"], truths, _AsWritten.from_json(result))


def _stack_case(image: str, truth: dict[str, Any], result: Any) -> metrics.StackCase:
    return metrics.StackCase(
        image,
        np.array(truth["tumordomains"]),
        np.array([label == "atypical" for label in truth["labels"]], bool),
        np.array([crop["class"] == "atypical" for crop in result], bool),
        np.array([crop["confidence"] for crop in result], np.float64),
    )
