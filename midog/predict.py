"""python -m midog predict: what a job is to inference.py, for files and folders, here or on many machines.

Each image gets a folder of its own, with the result, `about.json` (which image, um per pixel, system and weights made
it, and what was counted) and, if asked for, the report. An image whose `about.json` still holds is not run again, so a
batch that was stopped goes on where it was, and new weights make new results. The crops of a folder are one image, with
a table beside it. What became of all images is in `summary.csv` and on `index.html`; `predict.log` has a line each.
"""

import argparse
import json
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from midog import __version__, about, job
from midog.calibration import Calibration
from midog.detections import Detections
from midog.errors import UserError, one_line
from midog.evaluation import local_threshold
from midog.evaluation.local_threshold import LocalThreshold
from midog.files import append_line, check_writable, sha256_of, write_file, write_json
from midog.images.folder import Found, find_images, identity_of, resolution_of
from midog.images.resolution import Resolution
from midog.images.slide import SUFFIXES, Slide, open_slide
from midog.images.stack import Crops
from midog.images.track import check_mpp, track_of_image
from midog.report.export import crops_csv
from midog.report.index import write_index, write_thumbnail
from midog.report.misclassification import Errors
from midog.report.summary import (
    DONE,
    DONE_BEFORE,
    FAILED,
    GUESSED,
    Row,
    Summary,
    failed_row,
    row_of_region,
    row_of_stack,
)
from midog.run import classify_with, load
from midog.system import Precision

if TYPE_CHECKING:
    from midog.engine.detector import Progress
    from midog.report.counts import Counts

logger = logging.getLogger(__name__)

CROPS, LOG = "crops.csv", "predict.log"
REPORTS = {1: "report.html", 2: "contact-sheet.png"}  # by track, what --report leaves
PICTURES = {1: "overlay.png", 2: "contact-sheet.png"}  # of which one is shown small
SCHEDULER_SECONDS = 10
PAGE_SECONDS, PAGE_SHARE = 5, 0.05  # index.html is written anew at most so often, and in so much of the time
ONE_AT_A_TIME = threading.Lock()  # a slide takes all processors, however many threads its worker has


@dataclass(frozen=True)
class Job:
    """One image, and all that another machine needs to know about it.

    Attributes:
        image, folder: where it lies, and where its result goes; absolute. The former may be a folder: of a DICOM
            series, or of crops.
        name: the image's, with its path in the folder that was given.
        track: 1, 2, or None for what the image looks like.
        model, system, device, precision, mpp: as given to the command.
        report: whether to draw it.
        atypical: whether to classify its mitotic figures, too.
        threshold: a laboratory's own for Track 1, or None.
    """

    image: Path
    folder: Path
    name: str
    track: int | None
    model: str | None
    system: str | None
    device: str
    precision: Precision | None
    mpp: float | None
    report: bool
    atypical: bool
    threshold: LocalThreshold | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes, beside the options that other commands share."""
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="region, slide, stack of crops or a crop, or a folder, which is searched with all below it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder an image")
    parser.add_argument("--track", type=int, choices=(1, 2), help="1: detect, 2: classify (what FILE looks like)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--report", action="store_true", help="draw each result, too")
    parser.add_argument(
        "--local-threshold",
        type=Path,
        metavar="FILE",
        help="a laboratory's own, which midog check found, instead of the system's (Track 1)",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, whose workers take whole images")


def run(arguments: argparse.Namespace) -> None:
    """Run every image; a failed one does not stop the others.

    Args:
        arguments: of the command line.

    Raises:
        UserError: nothing to do, or at least one image failed.
        KeyboardInterrupt: after Ctrl-C; what is done is in the table.
    """
    jobs = plan(arguments)
    check_writable(arguments.out)
    batch = Batch(arguments.out, len(jobs))
    try:
        for row in spread(jobs, arguments.scheduler) if arguments.scheduler else here(jobs):
            batch.add(row)
    except KeyboardInterrupt:
        batch.log("stopped")
        raise KeyboardInterrupt("the same command goes on") from None
    finally:
        batch.write()
    if len(jobs) > 1:
        logger.info("%d images: %s; %s", len(jobs), batch, batch.summary.path)
    if batch.failed and len(jobs) == 1:
        raise UserError(batch.failed[0].message)
    if batch.failed:
        raise UserError(
            f"{len(batch.failed)} of {len(jobs)} images failed, see above; mend them and run the same again"
        )


class Batch:
    """What is told of the images of one command: summary.csv, index.html and predict.log.

    Args:
        out: the folder that gets them; exists and can be written.
        total: how many images.
    """

    def __init__(self, out: Path, total: int) -> None:
        self.out, self.total = out, total
        self.summary = Summary(out)
        self.ended: Counter[str] = Counter()  # how many images, by status
        self.guessed = 0  # of how many the resolution was assumed
        self.failed: list[Row] = []
        self._started = time.monotonic()
        self._page_due = self._started
        if self.summary.older:
            logger.info("%s: the table of an older version, kept", self.summary.older)
        self.log(f"{total} images, version {__version__}")

    def __str__(self) -> str:
        said = ", ".join(f"{self.ended[each]} {each}" for each in (DONE, DONE_BEFORE, FAILED) if self.ended[each])
        return said + f"; in {self.guessed} the resolution assumed" * bool(self.guessed)

    def add(self, row: Row) -> None:
        """Tell of an image that is done."""
        self.ended[row.status.removesuffix(GUESSED)] += 1
        self.guessed += row.guessed
        if row.failed:
            self.failed.append(row)
        self.summary.add(row)
        line = f"{self.ended.total()} of {self.total}, {len(self.failed)} failed{self._left()}"
        self.log(f"{line}: {row.image}, {row.status}")
        if self.total > 1:
            logger.info(line)
        if time.monotonic() >= self._page_due:
            self.write()

    def _left(self) -> str:
        """The time that the others will take, if they take as long as those that were run."""
        run, others = self.ended.total() - self.ended[DONE_BEFORE], self.total - self.ended.total()
        if not run or not others:
            return ""
        seconds = (time.monotonic() - self._started) / run * others
        return f", about {timedelta(seconds=round(seconds))} left"

    def write(self) -> None:
        """Bring table and page up to date; without a row there is nothing to write."""
        count = self.ended.total()
        if count:
            begun = time.monotonic()
            running = f"{count} of {self.total} so far" if count < self.total else ""
            write_index(self.out, self.summary.write(), list(REPORTS.values()), running)
            ended = time.monotonic()
            self._page_due = ended + max(PAGE_SECONDS, (ended - begun) / PAGE_SHARE)

    def log(self, text: str) -> None:
        """Add a line to predict.log."""
        append_line(self.out / LOG, f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {one_line(text)}")


def plan(arguments: argparse.Namespace) -> list[Job]:
    """A `Job` for every image that the arguments name, each with a folder of its own.

    Raises:
        UserError: an empty folder, two images of one name, or no local threshold of the system in its file.
    """
    images = [each for path in arguments.images for each in expand(path, arguments.out, arguments.track)]
    repeated = [name for name, count in Counter(each.name for each in images).items() if count > 1]
    if repeated:
        raise UserError(
            f"{repeated[0]}: two images of this name; give the folder that holds both, or two commands with another "
            "--out each"
        )
    model = str(Path(arguments.model).resolve()) if arguments.model else None
    threshold = None
    if arguments.local_threshold:
        threshold = local_threshold.read(arguments.local_threshold)
        system = load(arguments.system, 1, model, arguments.device, arguments.precision).system
        threshold.check_is_of(arguments.local_threshold, system.system, system.version)
    runs = arguments.device, arguments.precision
    shared = model, arguments.system, *runs, arguments.mpp, arguments.report, arguments.atypical, threshold
    return [
        Job(
            each.path.absolute(),
            (arguments.out / each.name).resolve(),
            each.name,
            2 if each.crops else arguments.track,
            *shared,
        )
        for each in images
    ]


def expand(path: Path, out: Path, track: int | None = None) -> list[Found]:
    """The images that a path stands for: itself, or those in the folder and below, which one line counts.

    Args:
        path: as given.
        out: for the results; not searched.
        track: as given; with 1 a crop is a region like others.

    Raises:
        UserError: a folder without an image.
    """
    if not path.is_dir():
        return [Found(path, path.name)]
    found = find_images(path, out, group_crops=track != 1)
    if not found:
        known = " ".join(sorted(SUFFIXES))
        raise UserError(f"{path}: no image in this folder or below it; looked for {known}, and DICOM without suffix")
    images = [each for each in found if not each.crops]
    folders = len({each.path.parent for each in images} | {each.path for each in found if each.crops})
    said = [f"{len(images)} images"] * bool(images)
    said += [f"{each.crops} crops of {each.name} as one stack" for each in found if each.crops]
    logger.info("%s: %s, in %d folders", path, ", ".join(said), folders)
    return found


def here(jobs: list[Job]) -> Iterator[Row]:
    """Run the images one after the other."""
    from tqdm import tqdm

    several = None if len(jobs) > 1 else True  # None: a bar only on a terminal

    def tiles(places: Iterable[Any]) -> Iterable[Any]:
        return tqdm(places, "tiles", unit="tile", disable=None, leave=len(jobs) == 1)

    for each in tqdm(jobs, "images", unit="image", disable=several):
        row = process(each, tiles)
        if row.failed and len(jobs) > 1:
            logger.warning("failed: %s", row.message)
        yield row


def spread(jobs: list[Job], address: str) -> Iterator[Row]:
    """Hand the images to the workers of a Dask scheduler; their results as they come.

    A worker that dies loses its own image only: the scheduler gives it to another one. Warnings come back as log
    records.
    """
    from distributed import Client, as_completed
    from tqdm import tqdm

    try:
        client = Client(address, timeout=SCHEDULER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{address}: no Dask scheduler answers ({reason}); start one with `dask scheduler`") from None
    with client:
        if not client.scheduler_info()["workers"]:
            logger.warning("%s: no worker has joined yet; start some with `dask worker %s`", address, address)
        client.forward_logging("midog", logging.WARNING)
        futures = {client.submit(remote, each, key=f"midog-{each.folder}", pure=False): each for each in jobs}
        for future in tqdm(as_completed(futures), "images", len(futures), unit="image", disable=None):
            try:
                row = future.result()
            except Exception as error:  # the scheduler gave the image up, whatever its workers died of
                lost = futures[future]
                row = failed_row(lost.name, f"{lost.image}: {error}")
            if row.failed and len(jobs) > 1:
                logger.warning("failed: %s", row.message)
            yield row


def remote(each: Job) -> Row:
    """On a worker."""
    with ONE_AT_A_TIME:
        return process(each)


def process(each: Job, progress: "Progress | None" = None) -> Row:
    """Run one image, or find that it was run; what became of it, whatever happens."""
    try:
        return row_of(each, progress)
    except UserError as error:
        return failed_row(each.name, str(error))
    except Exception as error:  # a bug on one image of thousands must not cost the others
        traceback.print_exc()
        return failed_row(each.name, f"{each.image}: {type(error).__name__}: {error}")


def row_of(each: Job, progress: "Progress | None") -> Row:
    """Run one image, or find that it was run; all its files are written."""
    started = time.perf_counter()
    track = each.track or track_of_image(each.image)
    check_mpp(each.image, each.mpp, track)
    runner = load(each.system, track, each.model, each.device, each.precision)
    subtypes = load(None, 2, each.model, each.device, each.precision) if each.atypical and track == 1 else None
    logger.info("image %s, system %s", each.name, runner.system)
    result_path = each.folder / job.RESULT_NAMES[track]
    wanted = depends_on(each, track, runner.system)
    done = read_done(each.folder / about.NAME, wanted, result_path)
    check_writable(each.folder)
    if done:
        for text in done.made["warnings"]:
            logger.warning(text)
    else:
        done = _make(each, track, runner, wanted, result_path, progress)
    logger.info("result %s%s", result_path, ", made before" * (done.status == DONE_BEFORE))
    made = done.made
    if not _is_counted(each, track, made, subtypes):
        made |= _count(each, track, done, runner, subtypes, result_path)
        made["seconds"] = round(made.get("seconds", 0) + time.perf_counter() - started, 2)
        about.write_about(each.folder, made)
    if track == 1:
        systems = [str(runner.system), *filter(None, [made["subtypes"]])]
        known = done.resolution, made["counts"], systems, made["seconds"], made.get("subtype_errors", ())
        return row_of_region(each.name, done.status, made["size_px"], *known)
    known = done.resolution, done.result, [str(runner.system)], made["seconds"], runner.subtype_errors
    return row_of_stack(each.name, done.status, *known)


@dataclass(frozen=True)
class Done:
    """A result that is there.

    Attributes:
        status: `DONE` or `DONE_BEFORE`.
        result: the platform's JSON.
        resolution: that was taken.
        made: what about.json says.
    """

    status: str
    result: Any
    resolution: Resolution
    made: dict[str, Any]


def _make(
    each: Job, track: int, runner: Any, wanted: dict[str, Any], result_path: Path, progress: "Progress | None"
) -> Done:
    """Run one image; result and about.json are written, and what was drawn of another result is gone."""
    with _warnings() as warnings, runner.open(each.image, each.mpp) as image:
        result = runner.result(each.image, image, progress)
        resolution = resolution_of(image)
        table = crops_csv(image.names, result, image.resolutions) if isinstance(image, Crops) else None
    if each.threshold and track == 1:
        result = _shifted(result, each.threshold.shift)
    for name in (about.NAME, REPORTS[track]):
        (each.folder / name).unlink(missing_ok=True)
    write_json(result_path, result)
    if table:
        write_file(each.folder / CROPS, table)
    made = wanted | {
        "image": {"name": each.image.name} | wanted["image"],
        "image_path": str(each.image),
        "resolution": asdict(resolution),
        "runs_on": runner.runs_on,
        "program": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "warnings": warnings,
    }
    about.write_about(each.folder, made)
    return Done(DONE, result, resolution, made)


def _shifted(result: dict[str, Any], shift: float) -> dict[str, Any]:
    """A Track 1 result whose scores are moved, in logits, so that .5 is another threshold."""
    found = Detections.from_json(result)
    return found.with_probabilities(Calibration(shift=shift).apply(found.probabilities)).to_json()


def _is_counted(each: Job, track: int, made: dict[str, Any], subtypes: Any) -> bool:
    """Whether numbers, and report if it is asked for, are there for this result and these subtypes."""
    if "counts" not in made or (track == 1 and made["counts"] is None):
        return False
    if subtypes and made["subtypes"] != str(subtypes.system):
        return False
    return not each.report or (made["drawn"] and (each.folder / REPORTS[track]).exists())


def _count(each: Job, track: int, done: Done, runner: Any, subtypes: Any, result_path: Path) -> dict[str, Any]:
    """What about.json has beside the result: its numbers, and whether they are drawn, too."""
    classify_figures = classify_with(subtypes) if subtypes else None
    of_system = runner.system.made.reliability
    reliability = () if done.made.get("local_threshold") else of_system  # that of scores which are not shifted
    errors = subtypes.subtype_errors if subtypes else []
    counts: Counts | None = None
    logging.getLogger("midog.images").setLevel(logging.ERROR)  # what is odd about the file was said when it was run
    try:
        if each.report:
            from midog.report.draw import draw

            counts = draw(
                track,
                each.image,
                done.result,
                each.folder,
                done.resolution,
                system=str(runner.system),
                classify_figures=classify_figures,
                result_sha256=sha256_of(result_path),
                reliability=reliability,
                subtype_errors=errors,
            )
            write_thumbnail(each.folder / PICTURES[track])
        elif track == 1:
            counts = _count_only(each.image, done, classify_figures, errors)
        size = _size_of(each.image) if track == 1 else None
    finally:
        logging.getLogger("midog.images").setLevel(logging.NOTSET)
    return {
        "reliability": reliability,
        "counts": counts.to_builtins() if counts else None,
        "subtypes": str(subtypes.system) if subtypes else None,
        "subtype_errors": errors,
        "drawn": each.report,
        "size_px": size,
    }


def _size_of(image: Path) -> tuple[int, int]:
    """(width, height), px."""
    with open_slide(image) as slide:
        return slide.size


def _count_only(
    image: Path,
    done: Done,
    classify_figures: "Callable[[Slide, Detections], tuple[Detections, str]] | None",
    errors: Errors,
) -> "Counts":
    """The numbers of a Track 1 result, as its report would have them."""
    from midog.images.tissue import tissue_mask
    from midog.report.counts import count
    from midog.report.draw import found_on
    from midog.report.overlay import LONGEST_SIDE

    with open_slide(image, done.resolution.um_per_px[0]) as slide:
        slide.um_per_px, slide.resolution = done.resolution.um_per_px, done.resolution
        found = found_on(slide, done.result).best_first()
        if classify_figures:
            found, _ = classify_figures(slide, found)
        return count(slide, found, tissue_mask(slide, slide.overview(LONGEST_SIDE)), errors=errors)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The lines that the library warns with meanwhile."""
    texts: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    listener, listened = Listener(logging.WARNING), logging.getLogger("midog")
    listened.addHandler(listener)
    try:
        yield texts
    finally:
        listened.removeHandler(listener)


def depends_on(each: Job, track: int, system: Any) -> dict[str, Any]:
    """All that a result depends on, as about.json has it, where the image has a name, too."""
    return {
        "image": identity_of(each.image),
        "um_per_px_given": each.mpp,
        "system": system.system,
        "version": system.version,
        "detector": msgspec.to_builtins(system.detector),
        "classifier": msgspec.to_builtins(system.classifier),
        "local_threshold": msgspec.to_builtins(each.threshold) if track == 1 else None,
    }


def read_done(path: Path, wanted: dict[str, Any], result_path: Path) -> Done | None:
    """The result beside an about.json, if it says that this was made from the same by the same; or None."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        there = {key: made.get(key) for key in wanted} | {"image": made["image"] | {"name": None}}
        if there != json.loads(json.dumps(wanted | {"image": wanted["image"] | {"name": None}})):
            return None
        resolution = msgspec.convert(made["resolution"], Resolution)
        return Done(DONE_BEFORE, json.loads(result_path.read_text(encoding="utf-8")), resolution, made)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, msgspec.ValidationError):
        return None
