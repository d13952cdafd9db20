"""python -m midog predict: what a job is to inference.py, for files and folders, here or on many machines.

Each image gets a folder of its own, with the result, `about.json` (which image, um per pixel, system and weights made
it) and, if asked for, the report. An image whose `about.json` still holds is not run again, so a batch that was stopped
goes on where it was, and new weights make new results. The crops of a folder are one image, with a table beside it.
"""

import argparse
import csv
import io
import json
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from midog import __version__, about, job
from midog.errors import UserError
from midog.files import check_writable, sha256_of, write_file, write_json
from midog.images.folder import Found, find_images, identity_of, resolution_of
from midog.images.resolution import ASSUMED, Resolution, format_spacing
from midog.images.slide import SUFFIXES
from midog.images.stack import Crops
from midog.images.track import check_mpp, track_of_image
from midog.report.export import crops_csv
from midog.run import classify_with, load

if TYPE_CHECKING:
    from midog.engine.detector import Progress

logger = logging.getLogger(__name__)

SUMMARY, CROPS = "summary.csv", "crops.csv"
GUESSED = ", resolution assumed"  # behind a status
REPORTS = {1: "report.html", 2: "contact-sheet.png"}  # by track, what --report leaves
SCHEDULER_SECONDS = 10
ONE_AT_A_TIME = threading.Lock()  # a slide takes all processors, however many threads its worker has


@dataclass(frozen=True)
class Job:
    """One image, and all that another machine needs to know about it.

    Attributes:
        image, folder: where it lies, and where its result goes; absolute. The former may be a folder: of a DICOM
            series, or of crops.
        name: the image's, with its path in the folder that was given.
        track: 1, 2, or None for what the image looks like.
        model, system, device, mpp: as given to the command.
        report: whether to draw it.
        atypical: whether to classify its mitotic figures for the report, too.
    """

    image: Path
    folder: Path
    name: str
    track: int | None
    model: str | None
    system: str | None
    device: str
    mpp: float | None
    report: bool
    atypical: bool


@dataclass(frozen=True)
class JobResult:
    """What became of an image: a row of summary.csv.

    Attributes:
        image: its name.
        status: "done", "done before" or "failed"; the former two with `GUESSED` behind, where that is so.
        found: mitotic figures (Track 1), atypical ones (Track 2).
        of: candidates, or crops.
        um_per_px, um_per_px_source: that was taken, as text, and whether it was read, given or assumed.
        seconds: that it took.
        message: why it failed.
    """

    image: str
    status: str
    found: int = 0
    of: int = 0
    um_per_px: str = ""
    um_per_px_source: str = ""
    seconds: float = 0.0
    message: str = ""


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
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, whose workers take whole images")


def run(arguments: argparse.Namespace) -> None:
    """Run every image; a failed one does not stop the others.

    Args:
        arguments: of the command line.

    Raises:
        UserError: nothing to do, or at least one image failed.
    """
    if arguments.atypical and not arguments.report:
        raise UserError("--atypical: is shown in the report; give --report too")
    jobs = plan(arguments)
    check_writable(arguments.out)
    results: list[JobResult] = []
    for result in spread(jobs, arguments.scheduler) if arguments.scheduler else here(jobs):
        results.append(result)
        write_summary(arguments.out / SUMMARY, results)
    failed = [result for result in results if result.status == "failed"]
    if len(jobs) > 1:
        counts = Counter(result.status.removesuffix(GUESSED) for result in results)
        said = ", ".join(f"{counts[status]} {status}" for status in ("done", "done before", "failed") if counts[status])
        guessed = sum(result.status.endswith(GUESSED) for result in results)
        said += f"; in {guessed} the{GUESSED.removeprefix(',')}" * bool(guessed)
        logger.info("%d images: %s; %s", len(jobs), said, arguments.out / SUMMARY)
    if failed and len(jobs) == 1:
        raise UserError(failed[0].message)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} images failed, see above; mend them and run the same again")


def plan(arguments: argparse.Namespace) -> list[Job]:
    """A `Job` for every image that the arguments name, each with a folder of its own.

    Raises:
        UserError: an empty folder, or two images of one name.
    """
    images = [each for path in arguments.images for each in expand(path, arguments.out, arguments.track)]
    repeated = [name for name, count in Counter(each.name for each in images).items() if count > 1]
    if repeated:
        raise UserError(
            f"{repeated[0]}: two images of this name; give the folder that holds both, or two commands with another "
            "--out each"
        )
    model = str(Path(arguments.model).resolve()) if arguments.model else None
    shared = (model, arguments.system, arguments.device, arguments.mpp, arguments.report, arguments.atypical)
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


def here(jobs: list[Job]) -> Iterator[JobResult]:
    """Run the images one after the other."""
    from tqdm import tqdm

    several = None if len(jobs) > 1 else True  # None: a bar only on a terminal

    def tiles(places: Iterable[Any]) -> Iterable[Any]:
        return tqdm(places, "tiles", unit="tile", disable=None, leave=len(jobs) == 1)

    for each in tqdm(jobs, "images", unit="image", disable=several):
        result = process(each, tiles)
        if result.status == "failed" and len(jobs) > 1:
            logger.warning("failed: %s", result.message)
        yield result


def spread(jobs: list[Job], address: str) -> Iterator[JobResult]:
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
                result = future.result()
            except Exception as error:  # the scheduler gave the image up, whatever its workers died of
                lost = futures[future]
                result = JobResult(lost.name, "failed", message=f"{lost.image}: {error}")
            if result.status == "failed" and len(jobs) > 1:
                logger.warning("failed: %s", result.message)
            yield result


def remote(each: Job) -> JobResult:
    """On a worker."""
    with ONE_AT_A_TIME:
        return process(each)


def process(each: Job, progress: "Progress | None" = None) -> JobResult:
    """Run one image, or find that it was run; what became of it, whatever happens."""
    started = time.perf_counter()
    try:
        status, track, result, resolution = result_of(each, progress)
    except UserError as error:
        return JobResult(each.name, "failed", message=str(error))
    except Exception as error:  # a bug on one image of thousands must not cost the others
        traceback.print_exc()
        return JobResult(each.name, "failed", message=f"{each.image}: {type(error).__name__}: {error}")
    entries = result["points"] if track == 1 else result
    sought, key = (job.POINT_NAMES[0], "name") if track == 1 else ("atypical", "class")
    found = sum(entry[key] == sought for entry in entries)
    taken = format_spacing(resolution.um_per_px), resolution.source
    seconds = round(time.perf_counter() - started, 2)
    status += GUESSED * (resolution.source == ASSUMED)
    return JobResult(each.name, status, found, len(entries), *taken, seconds)


def result_of(each: Job, progress: "Progress | None") -> tuple[str, int, Any, Resolution]:
    """Status, track and result of an image, and the resolution that was taken; the files are written."""
    track = each.track or track_of_image(each.image)
    check_mpp(each.image, each.mpp, track)
    runner = load(each.system, track, each.model, each.device)
    logger.info("image %s, system %s", each.name, runner.system)
    result_path = each.folder / job.RESULT_NAMES[track]
    wanted = depends_on(each, runner.system)
    done = read_done(each.folder / about.NAME, wanted, result_path)
    check_writable(each.folder)
    if done:
        result, resolution = done.result, done.resolution
        for text in done.warnings:
            logger.warning(text)
    else:
        with _warnings() as warnings, runner.open(each.image, each.mpp) as image:
            result = runner.result(each.image, image, progress)
            resolution = resolution_of(image)
            table = crops_csv(image.names, result, image.resolutions) if isinstance(image, Crops) else None
        (each.folder / about.NAME).unlink(missing_ok=True)
        write_json(result_path, result)
        if table:
            write_file(each.folder / CROPS, table)
        made = {
            "image": {"name": each.image.name} | wanted["image"],
            "image_path": str(each.image),
            "resolution": asdict(resolution),
            "program": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "warnings": warnings,
        }
        about.write_about(each.folder, wanted | made)
    logger.info("result %s%s", result_path, ", made before" if done else "")
    if each.report and (not done or not (each.folder / REPORTS[track]).exists()):
        _draw(each, track, result, resolution, runner, sha256_of(result_path))
    return "done before" if done else "done", track, result, resolution


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


def _draw(each: Job, track: int, result: Any, resolution: Resolution, runner: Any, result_sha256: str) -> None:
    from midog.report.draw import draw

    subtypes = classify_with(each.model, each.device) if each.atypical and track == 1 else None
    logging.getLogger("midog.images").setLevel(logging.ERROR)  # what is odd about the file was said when it was run
    try:
        known = resolution, (), str(runner.system), subtypes
        draw(track, each.image, result, each.folder, *known, result_sha256=result_sha256)
    finally:
        logging.getLogger("midog.images").setLevel(logging.NOTSET)


def depends_on(each: Job, system: Any) -> dict[str, Any]:
    """All that a result depends on, as about.json has it, where the image has a name, too."""
    return {
        "image": identity_of(each.image),
        "um_per_px_given": each.mpp,
        "system": system.system,
        "version": system.version,
        "detector": msgspec.to_builtins(system.detector),
        "classifier": msgspec.to_builtins(system.classifier),
    }


@dataclass(frozen=True)
class Done:
    """A result that is there: the platform's JSON, the resolution that was taken, and what the run warned with."""

    result: Any
    resolution: Resolution
    warnings: Sequence[str]


def read_done(path: Path, wanted: dict[str, Any], result_path: Path) -> Done | None:
    """The result beside an about.json, if it says that this was made from the same by the same; or None."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        there = {key: made[key] for key in wanted} | {"image": made["image"] | {"name": None}}
        if there != json.loads(json.dumps(wanted | {"image": wanted["image"] | {"name": None}})):
            return None
        resolution = msgspec.convert(made["resolution"], Resolution)
        return Done(json.loads(result_path.read_text(encoding="utf-8")), resolution, made["warnings"])
    except (KeyError, OSError, TypeError, ValueError, msgspec.ValidationError):
        return None


def write_summary(path: Path, results: list[JobResult]) -> None:
    """Write summary.csv whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(JobResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_file(path, text.getvalue())
