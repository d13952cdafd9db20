"""midog check: whether a system works on a laboratory's own slides, by a region that the laboratory has counted.

The system runs on the region as its file says, at .25 and .5 um per pixel, and with red and blue swapped. What of that
meets the laboratory's own count best says whether scale, axes and colours are taken right; then follow recall,
precision and the error of the count. Where the tolerances come from stands in docs/CHECK.md.

With `--clicks` it is a threshold that is found: see `midog.evaluation.local_threshold`.
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from midog import __version__, job
from midog.about import NAME as ABOUT
from midog.about import read_about, write_about
from midog.detections import UNSURE, Detections
from midog.errors import UserError
from midog.evaluation import local_threshold
from midog.evaluation.arrangement import (
    BEST,
    CHANCE,
    F1_MORE,
    LEAST_FIGURES,
    Arrangement,
    Fit,
    RunFit,
    chance_of,
    fits,
    run_fits,
)
from midog.evaluation.metrics import MATCH_UM, match
from midog.files import check_writable, read_json, sha256_of, write_json
from midog.images.appearance import Appearance, appearance_of, pooled
from midog.images.folder import identity_of
from midog.images.resolution import ASSUMED, Resolution
from midog.images.slide import Slide, open_slide
from midog.images.tiles import grid
from midog.images.tissue import tissue_mask
from midog.images.track import check_mpp
from midog.report.binding import bind
from midog.report.check_page import OVERVIEW_PX, write_check_page
from midog.report.control_count import read_count
from midog.report.draw import found_on
from midog.report.intervals import poisson_interval, wilson_interval
from midog.report.review import FIGURES, read_review
from midog.run import load
from midog.system import System, Tissue

if TYPE_CHECKING:
    from midog.run import Track1

logger = logging.getLogger(__name__)

OK, LOOK, WRONG = "ok", "look", "wrong"
WRONG_CODE = 3  # exit code where a line says so; 1 is bad input
NAME = "check.json"
LEAST_SIDE, MOST_PX = 64, 200_000_000  # of a region; it is held in memory
SPACINGS = 0.25, 0.5  # um/px that scans have
SAME_SPACING = 0.1  # relative; the system does not resample by less
SWAPPED = "red and blue swapped"
WINDOWS, WINDOW = 16, 1024  # to measure tissue in; px

LEAST_NUCLEI = 50
NUCLEUS_OK, NUCLEUS_WRONG = (0.8, 1.25), (0.65, 1.4)  # size over that of the training's
NUCLEI_MORE = 2.9  # times as many at twice the um per pixel: see docs/CHECK.md
ANGLE_OK, ANGLE_WRONG = 15.0, 27.0  # degrees between a stain and the training's
ORDER_WRONG = -0.3  # see `order_of`; the training has .3
BRIGHTNESS_OK, BRIGHTNESS_WRONG = 25.0, 45.0  # grey levels from the training's
SHARE_OK, SHARE_WRONG = 0.6, 0.5  # recall and precision
COUNT_OK, COUNT_WRONG = 0.25, 0.5  # of the count

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """A line of the page.

    Attributes:
        name: what was looked at.
        verdict: `OK`, `LOOK` or `WRONG`.
        said: what was found.
        advice: what to do about it; "" where nothing is to be done.
    """

    name: str
    verdict: str
    said: str
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Trial:
    """A run of the system.

    Attributes:
        said: how it was run, in words.
        found: in px of the region, with the um per pixel of the run.
    """

    said: str
    found: Detections


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found out about a region.

    Attributes:
        findings: line by line.
        note: how region and count had to be taken so that they fit; "" for as they are.
        marks: by "hit", "missed" and "false" the places float64 (N, 2), px.
        tissue_mm2: at the um per pixel that fits.
    """

    findings: list[Finding]
    note: str
    marks: dict[str, Floats]
    tissue_mm2: float

    @property
    def verdict(self) -> str:
        return max((each.verdict for each in self.findings), key=(OK, LOOK, WRONG).index)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes, beside the options that other commands share."""
    parser.add_argument("region", type=Path, metavar="REGION", help="an image with figures, which was counted whole")
    parser.add_argument(
        "count",
        type=Path,
        metavar="COUNT",
        help="its figures, GeoJSON or a table; with --clicks RESULT.json",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"for check.html and {NAME}; with --clicks (the result's folder)"
    )
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument(
        "--clicks",
        type=Path,
        metavar="REVIEWED.geojson",
        help=f"find the local threshold by {local_threshold.LEAST_VERDICTS} to {local_threshold.ENOUGH_VERDICTS} "
        "verdicts on RESULT.json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check a region, or find a threshold.

    Args:
        arguments: of the command line.

    Returns:
        `WRONG_CODE` where something is wrong, else 0.

    Raises:
        UserError: what was given cannot be read, or is not of each other.
    """
    check_mpp(arguments.region, arguments.mpp, 1)
    if arguments.clicks:
        find_local_threshold(arguments)
        return 0
    if arguments.out:
        check_writable(arguments.out)
    runner = load(arguments.system, 1, arguments.model, arguments.device, arguments.precision)
    with runner.open(arguments.region, arguments.mpp) as slide:
        check_size(arguments.region, slide)
        return check(arguments, runner, slide)


def check_size(path: Path, slide: Slide) -> None:
    """Make sure that a region can be checked.

    Raises:
        UserError: it is too small, or a whole slide.
    """
    width, height = slide.size
    if min(width, height) < LEAST_SIDE or width * height > MOST_PX:
        raise UserError(
            f"{path}: {width} x {height} px is no control region; give one of {LEAST_SIDE} px a side to "
            f"{MOST_PX / 1e6:.0f} megapixels, in which all figures were counted"
        )


def check(arguments: argparse.Namespace, runner: "Track1", slide: Slide) -> int:
    """Check an open region; the lines are logged, and written where the arguments say so. Returns as `run`."""
    view = slide.overview(OVERVIEW_PX)
    looked = examine(runner, slide, view, arguments.count, arguments.region.name)
    for each in looked.findings:
        advice = f": {each.advice}" * bool(each.advice)
        logger.info("%-16s%-6s%s%s", each.name, each.verdict, each.said, advice)
    if arguments.out:
        _write(arguments, runner.system, slide, view, looked)
    logger.info("%s: %s", arguments.region.name, looked.verdict)
    return WRONG_CODE if looked.verdict == WRONG else 0


def examine(runner: "Track1", slide: Slide, view: NDArray[np.uint8], count: Path, name: str) -> Examination:
    """Run a system on a region and compare it with a count.

    Args:
        runner: of the system.
        slide: the region, which is held in memory.
        view: its overview, uint8 (H, W, 3).
        count: file of the count.
        name: of the region's file.

    Raises:
        UserError: the count cannot be read or is none of this region; a region without tissue.
    """
    places = read_count(count, slide, name)
    tissue_mm2 = tissue_mask(slide, view).area_mm2
    pixels = slide.read(0, 0, *slide.size)
    looks, trained = appearance_in(pixels, slide.um_per_px), runner.system.made.tissue
    if looks is None:
        raise UserError(f"{name}: less than a tenth of it is tissue; give a region full of it")
    trials = trials_of(runner, slide, pixels)
    runs = [trial.found for trial in trials]
    given, best, better = fits(places, runs, slide.size, tissue_mm2)
    taken = best if better else given
    arranged = taken.arrangement.apply(places, slide.size)
    check_inside(count, arranged, slide)
    each_run = run_fits(arranged, runs)
    first, other = each_run[0], max(each_run, key=lambda fit: (fit.f1, -fit.run))
    run = trials[other.run if other.surely else 0]
    accepted = run.found[run.found.accepted]
    matched = match(arranged * accepted.um_per_px, accepted.centres * accepted.um_per_px, MATCH_UM)
    hits = int((matched >= 0).sum())
    false = np.delete(accepted.centres, matched[matched >= 0], axis=0)
    tissue_mm2 *= math.prod(accepted.um_per_px) / math.prod(slide.um_per_px)
    sized = scale(slide.resolution, trials[other.run], len(places), first, other, nucleus_ratio(looks, trained))
    if sized.verdict == OK:
        sized = scale_by_nuclei(sized, slide, pixels, looks, trials, each_run)
    findings = [
        sized,
        axes(len(places), given, taken, best, tissue_mm2),
        stains(looks, trained, run.said == SWAPPED, first, other),
        brightness(looks, trained),
        recall(hits, len(places), taken.hits),
        precision(hits, len(false), tissue_mm2),
        count_error(hits, len(places), len(false)),
    ]
    marks = {"hit": arranged[matched >= 0], "missed": arranged[matched < 0], "false": false}
    return Examination(findings, explained(trials[0], run, taken), marks, tissue_mm2)


def _write(
    arguments: argparse.Namespace, system: System, slide: Slide, view: NDArray[np.uint8], looked: Examination
) -> None:
    counts = {kind: len(places) for kind, places in looked.marks.items()}
    figures = counts["hit"] + counts["missed"]
    content = {
        "verdict": looked.verdict,
        "image": identity_of(arguments.region) | {"name": arguments.region.name},
        "count": arguments.count.name,
        "system": system.system,
        "version": system.version,
        "program": __version__,
        "um_per_px": list(slide.um_per_px),
        "um_per_px_source": slide.resolution.source,
        "explained_by": looked.note,
        "tissue_mm2": looked.tissue_mm2,
        "findings": [asdict(each) for each in looked.findings],
    }
    write_json(arguments.out / NAME, content | counts)
    facts = {
        "region": arguments.region.name,
        "count": f"{arguments.count.name}, {figures} figures",
        "um per pixel": str(slide.resolution),
        "tissue": f"{looked.tissue_mm2:.3g} mm2",
        "system": str(system),
    }
    path = write_check_page(
        arguments.out, slide, view, looked.verdict, looked.findings, facts, looked.note, looked.marks
    )
    logger.info("page %s", path)


def trials_of(runner: "Track1", slide: Slide, pixels: NDArray[np.uint8]) -> list[Trial]:
    """The runs, the first as the file says.

    Args:
        runner: of the system.
        slide: for its um per pixel.
        pixels: uint8 (H, W, 3), all of it.
    """
    own = sum(slide.um_per_px) / 2
    others = [each for each in SPACINGS if abs(each / own - 1) > SAME_SPACING]
    runs = [(f"at {own:.4g} um/px", pixels, own), *((f"at {each:g} um/px", pixels, each) for each in others)]
    runs.append((SWAPPED, np.ascontiguousarray(pixels[..., ::-1]), own))
    return [Trial(said, runner.predict(array, um_per_px)) for said, array, um_per_px in runs]


def check_inside(path: Path, places: Floats, slide: Slide) -> None:
    """Make sure that all places lie in the image.

    Raises:
        UserError: else.
    """
    outside = ~((places >= -0.5) & (places <= np.array(slide.size) - 0.5)).all(axis=1)
    if outside.any():
        (x, y), (width, height) = places[outside][0] + 0.5 - slide.corner_px, slide.size
        raise UserError(
            f"{path}: {outside.sum()} of {len(places)} figures lie outside the image of {width} x {height} px, "
            f"{x:g}, {y:g} px first; give the count of this image, or name the unit (x_um, y_um)"
        )


def appearance_in(pixels: NDArray[np.uint8], um_per_px: tuple[float, float]) -> Appearance | None:
    """Of windows that are spread evenly; None where none is tissue."""
    height, width = pixels.shape[:2]
    places = grid(width, height, (WINDOW, WINDOW), 0)
    chosen = places[np.unique(np.linspace(0, len(places) - 1, WINDOWS).astype(int))].tolist()
    return pooled(appearance_of(pixels[y : y + WINDOW, x : x + WINDOW], um_per_px) for x, y in chosen)


def nucleus_ratio(looks: Appearance, trained: Tissue | None) -> float | None:
    """Size of the nuclei over that of the training's, by median and 90th percentile; None where that says nothing."""
    if len(looks.nuclei_um) < LEAST_NUCLEI or trained is None or trained.nucleus_um is None:
        return None
    ratios = np.percentile(looks.nuclei_um, (50, 90)) / trained.nucleus_um[1:]
    return float(np.sqrt(ratios.prod()))


def angles_of(looks: Appearance, trained: Tissue) -> dict[str, float]:
    """By the stains' names, degrees between a region's and the training's."""
    pairs = {"haematoxylin": (looks.haematoxylin, trained.haematoxylin), "eosin": (looks.eosin, trained.eosin)}
    return {name: _degrees(found, np.array(known)) for name, (found, known) in pairs.items()}


def order_of(looks: Appearance) -> float:
    """Least blue less least red part of the stains: above 0, and as far below it with red and blue swapped."""
    return float(min(looks.haematoxylin[2], looks.eosin[2]) - min(looks.haematoxylin[0], looks.eosin[0]))


def explained(first: Trial, run: Trial, taken: Fit) -> str:
    """How the region and its count had to be taken for the lines that compare them; "" for as they are."""
    parts = [run.said] * (run is not first)
    parts += [f"count {taken.arrangement}"] * (taken.arrangement != Arrangement())
    return "; ".join(parts)


def scale(
    resolution: Resolution, trial: Trial, figures: int, first: RunFit, other: RunFit, ratio: float | None
) -> Finding:
    """Whether the um per pixel are right.

    Args:
        resolution: of the region.
        trial: the run of the highest F1.
        figures: how many were counted.
        first, other: the run as the file says, and that one.
        ratio: of the nuclei, or None.
    """
    nuclei = "too few nuclei to measure" if ratio is None else f"nuclei {ratio:.2f} times as large as in training"
    said = f"{resolution}; {nuclei}"
    spacing = f"{trial.found.um_per_px[0]:g}"
    met = f"{other.hits} of {figures} figures are found {trial.said}, {first.hits} as it is; {said}"
    is_spacing = other.run > 0 and trial.said != SWAPPED
    if is_spacing and other.surely:
        return Finding("Scale", WRONG, met, f"give --mpp {spacing}, and mend the files")
    if ratio is not None and not NUCLEUS_WRONG[0] <= ratio <= NUCLEUS_WRONG[1]:
        return Finding("Scale", WRONG, said, "no laboratory's nuclei differ so much: find the um per pixel, --mpp")
    if is_spacing and other.f1 - first.f1 >= F1_MORE:
        return Finding("Scale", LOOK, met, f"perhaps {spacing} um/px, but that is not sure: compare the scanner's")
    if resolution.source == ASSUMED or resolution.conflict:
        return Finding("Scale", LOOK, said, "find out the scanner's um per pixel and give it with --mpp")
    if ratio is not None and not NUCLEUS_OK[0] <= ratio <= NUCLEUS_OK[1]:
        return Finding("Scale", LOOK, said, "small or large cells, or a wrong scale: compare the scanner's")
    return Finding("Scale", OK, said)


def scale_by_nuclei(
    found: Finding,
    slide: Slide,
    pixels: NDArray[np.uint8],
    looks: Appearance,
    trials: Sequence[Trial],
    fits_of_runs: Sequence[RunFit],
) -> Finding:
    """Whether a scale that seems right is told twice too fine, which a system may not notice.

    Most nuclei are then too small to be any, and at twice the um per pixel they are there. That alone says little: it
    is taken where the system does at least as well there.

    Args:
        found: what is said of the scale else.
        slide: the region.
        pixels: uint8 (H, W, 3), all of it.
        looks: measured on these.
        trials, fits_of_runs: the runs, the first as the file says, and how they meet the count.
    """
    x = 2 * slide.um_per_px[0]
    there = [fit for fit in fits_of_runs if abs(trials[fit.run].found.um_per_px[0] / x - 1) <= SAME_SPACING]
    told, twice = nuclei_at_twice(pixels, slide.um_per_px, looks)
    if twice < max(LEAST_NUCLEI, NUCLEI_MORE * told) or not any(fit.f1 >= fits_of_runs[0].f1 for fit in there):
        return found
    said = f"{told} nuclei have a nucleus's size, at {x:g} um/px {twice}, and figures are found there as well"
    return Finding("Scale", LOOK, f"{said}; {found.said}", f"perhaps {x:g} um/px: compare the scanner's")


def nuclei_at_twice(pixels: NDArray[np.uint8], um_per_px: tuple[float, float], looks: Appearance) -> tuple[int, int]:
    """How many nuclei of a nucleus's size there are, as it looks at these um per pixel, and at twice as many."""
    x, y = um_per_px
    coarser = appearance_in(pixels, (2 * x, 2 * y))
    return len(looks.nuclei_um), len(coarser.nuclei_um) if coarser else 0


def axes(figures: int, given: Fit, taken: Fit, best: Fit, tissue_mm2: float) -> Finding:
    """Whether the count's places are counted as the image's are: as given, as taken for all that follows, at best."""
    if taken.arrangement != Arrangement():
        met = f"{taken.hits} of {figures} figures are met if the count is {taken.arrangement}, {given.hits} as it is"
        return Finding("Axes", WRONG, met, "mend the count, or how it is exported: results have the image's axes")
    said = f"{taken.hits} of {figures} figures are among the {BEST * figures} best candidates"
    if figures < LEAST_FIGURES:
        return Finding("Axes", LOOK, said, f"fewer than {LEAST_FIGURES} figures tell nothing; give a region with more")
    if chance_of(taken.hits, figures, BEST * figures, tissue_mm2) >= CHANCE:
        other = f"; {best.hits} if the count is {best.arrangement}" * (best.hits > taken.hits)
        return Finding(
            "Axes", LOOK, f"{said}, as by chance{other}", "see on the page whether the count is this region's"
        )
    return Finding("Axes", OK, said)


def stains(looks: Appearance, trained: Tissue | None, swapped: bool, first: RunFit, other: RunFit) -> Finding:
    """Whether the stains' colours are those of the training."""
    if swapped:
        said = f"{other.hits} figures are found with red and blue swapped, {first.hits} as it is"
        return Finding("Stains", WRONG, said, "the file has BGR for RGB: convert it again")
    if order_of(looks) < ORDER_WRONG:
        return Finding("Stains", WRONG, "red and blue look swapped", "the file has BGR for RGB: convert it again")
    if trained is None:
        return Finding("Stains", LOOK, "the system does not say what it was trained on", "compare another system")
    angles = angles_of(looks, trained)
    said = ", ".join(f"{name} {angle:.0f} degrees from the training's" for name, angle in angles.items())
    largest = max(angles.values())
    if largest > ANGLE_WRONG:
        return Finding("Stains", WRONG, said, "further than any laboratory: see the scanner's colour and white balance")
    if largest > ANGLE_OK:
        return Finding("Stains", LOOK, said, "an unusual stain: rely on recall and precision below")
    return Finding("Stains", OK, said)


def brightness(looks: Appearance, trained: Tissue | None) -> Finding:
    """Whether tissue and glass are as bright as in training."""
    glass = "no glass in it" if looks.white_level is None else f"glass {looks.white_level:.0f}"
    said = f"tissue {looks.brightness:.0f} of 255, {glass}"
    if trained is None:
        return Finding("Brightness", LOOK, said, "the system does not say what it was trained on")
    apart = abs(looks.brightness - trained.brightness)
    said += f"; in training {trained.brightness:.0f}"
    if apart > BRIGHTNESS_WRONG:
        return Finding("Brightness", WRONG, said, "further than any laboratory: see exposure, gamma, staining")
    if apart > BRIGHTNESS_OK:
        return Finding("Brightness", LOOK, said, "unusual: rely on recall and precision below")
    return Finding("Brightness", OK, said)


def recall(hits: int, figures: int, among_best: int) -> Finding:
    """How many of the figures are found, and how many are among the best candidates, whatever the threshold."""
    low, high = wilson_interval(hits, figures)
    said = f"{hits} of {figures} figures found, {hits / figures:.0%} (95 %: {low:.0%} to {high:.0%})"
    verdict = _of_share(hits / figures, high)
    advice = "see what was missed on the page"
    if among_best >= SHARE_OK * figures:
        advice = "most figures are among the best candidates: judge 30 to 50 of them for a local threshold, --clicks"
    return Finding("Recall", verdict, said, advice * (verdict != OK))


def precision(hits: int, false: int, tissue_mm2: float) -> Finding:
    """How many of the found are figures, and what is found beside them."""
    low, high = (each / tissue_mm2 if tissue_mm2 else math.nan for each in poisson_interval(false))
    rate = false / tissue_mm2 if tissue_mm2 else math.nan
    said = f"{false} found that were not counted, {rate:.1f} per mm2 of tissue (95 %: {low:.1f} to {high:.1f})"
    if not hits + false:
        return Finding("False positives", LOOK, f"{said}; nothing was found", "see Recall")
    said += f"; precision {hits / (hits + false):.0%}"
    verdict = _of_share(hits / (hits + false), wilson_interval(hits, hits + false)[1])
    advice = "see them on the page: missed by the count, or a threshold that is too low (--clicks)"
    return Finding("False positives", verdict, said, advice * (verdict != OK))


def count_error(hits: int, figures: int, false: int) -> Finding:
    """By how much the numbers differ; the interval is that of the misses and false positives as Poisson's counts."""
    found, missed = hits + false, figures - hits
    error = (found - figures) / figures
    reach = 1.96 * math.sqrt(missed + false) / figures
    said = f"{found} found, {figures} counted: {error:+.0%} (95 %: {error - reach:+.0%} to {error + reach:+.0%})"
    if abs(error) <= COUNT_OK:
        return Finding("Count", OK, said)
    surely = abs(error) - reach > COUNT_WRONG
    return Finding("Count", WRONG if surely else LOOK, said, "a local threshold evens it out: --clicks")


def _of_share(share: float, high: float) -> str:
    return OK if share >= SHARE_OK else WRONG if high < SHARE_WRONG else LOOK


def _degrees(one: Floats, other: Floats) -> float:
    return float(np.degrees(np.arccos(np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), -1, 1))))


def find_local_threshold(arguments: argparse.Namespace) -> None:
    """Write local_threshold.json, and what it says into the result's about.json.

    Raises:
        UserError: the files are not of each other, or there are too few verdicts.
    """
    path: Path = arguments.count
    folder = arguments.out or path.parent
    check_writable(folder)
    result = read_json(path, "give the mitotic-figures.json that was reviewed")
    try:
        job.check_detection_result(result)
    except ValueError as error:
        raise UserError(f"{path}: no result of Track 1 ({error}); with --clicks give RESULT.json") from None
    bound = bind(path, arguments.region, arguments.mpp, False, arguments.model)
    sha256 = sha256_of(path)
    with open_slide(arguments.region, bound.resolution.um_per_px[0] if bound.resolution else None) as slide:
        if bound.resolution:
            slide.um_per_px, slide.resolution = bound.resolution.um_per_px, bound.resolution
        found = found_on(slide, result).best_first()
        review = read_review(arguments.clicks, slide, found, identity_of(arguments.region), sha256)
    judged = review.reviewed & (review.candidates >= 0) & (np.array(review.names) != UNSURE)
    verdicts = np.isin(np.array(review.names)[judged], FIGURES)
    if len(verdicts) < local_threshold.LEAST_VERDICTS:
        raise UserError(
            f"{arguments.clicks}: {len(verdicts)} verdicts on candidates; {local_threshold.LEAST_VERDICTS} to "
            f"{local_threshold.ENOUGH_VERDICTS} are needed: accept or reject more, by the page's list \"For a local "
            'threshold"'
        )
    about = read_about(path)
    shift = about.local_threshold["shift"] if about and about.local_threshold else 0.0
    system = (about.system, about.version) if about else ("", "")
    threshold = local_threshold.find(
        found.probabilities, review.candidates[judged], verdicts, shift, *system, arguments.region.name, sha256
    )
    written = write_json(folder / local_threshold.NAME, msgspec.to_builtins(threshold))
    if about:
        content: dict[str, Any] = json.loads((path.parent / ABOUT).read_text(encoding="utf-8"))
        write_about(path.parent, content | {"local_threshold_found": msgspec.to_builtins(threshold)})
    low, high = threshold.interval_95
    logger.info(
        "threshold %.3f (95 %%: %.3f to %.3f) by %d verdicts, %d of them figures; expected F1 %.2f, before %.2f",
        threshold.threshold,
        low,
        high,
        threshold.verdicts,
        threshold.figures,
        threshold.expected_f1,
        threshold.expected_f1_before,
    )
    logger.info("%s: midog predict IMAGE --local-threshold takes it", written)
