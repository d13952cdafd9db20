"""python -m midog predict: what a job is to inference.py, for files and folders, here or on many machines.

Each image gets a folder of its own, with the result, `about.json` (which image, system and weights made it) and, if
asked for, the report. An image whose `about.json` still holds is not run again, so a batch that was stopped goes on
where it was, and new weights make new results.
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
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from midog import about, job
from midog.errors import UserError
from midog.files import check_writable, write_file, write_json
from midog.images.slide import SUFFIXES
from midog.images.track import check_mpp, track_of_image
from midog.run import Track1, classify_with, load

if TYPE_CHECKING:
    from midog.engine.detector import Progress

logger = logging.getLogger(__name__)

SUMMARY = "summary.csv"
REPORTS = {1: "report.html", 2: "contact-sheet.png"}  # by track, what --report leaves
SCHEDULER_SECONDS = 10
ONE_AT_A_TIME = threading.Lock()  # a slide takes all processors, however many threads its worker has


@dataclass(frozen=True)
class Job:
    """One image, and all that another machine needs to know about it.

    Attributes:
        image, folder: where it lies, and where its result goes; absolute.
        track: 1, 2, or None for what the image looks like.
        model, system, device, mpp: as given to the command.
        report: whether to draw it.
        atypical: whether to classify its mitotic figures for the report, too.
    """

    image: Path
    folder: Path
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
        status: "done", "done before" or "failed".
        found: mitotic figures (Track 1), atypical ones (Track 2).
        of: candidates, or crops.
        seconds: that it took.
        message: why it failed.
    """

    image: str
    status: str
    found: int = 0
    of: int = 0
    seconds: float = 0.0
    message: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes, beside the options that other commands share."""
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="FILE", help="region, slide or stack of crops, or a folder of them"
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
        counts = Counter(result.status for result in results)
        said = ", ".join(f"{counts[status]} {status}" for status in ("done", "done before", "failed") if counts[status])
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
    images = [image for path in arguments.images for image in expand(path)]
    repeated = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]}: two images of this name; give them to two commands with another --out each")
    model = str(Path(arguments.model).resolve()) if arguments.model else None
    shared = (arguments.track, model, arguments.system, arguments.device, arguments.mpp)
    drawn = (arguments.report, arguments.atypical)
    return [Job(image.resolve(), (arguments.out / image.name).resolve(), *shared, *drawn) for image in images]


def expand(path: Path) -> list[Path]:
    """The images that a path stands for: a folder's, or itself; a folder of DICOM files is one slide."""
    if not path.is_dir():
        return [path]
    inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.is_dir())
    if any(each.suffix.lower() == ".dcm" for each in inside):
        return [path]
    if not inside:
        raise UserError(f"{path}: no image in this folder; known are {' '.join(sorted(SUFFIXES))}")
    return inside


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
                image = futures[future].image
                result = JobResult(image.name, "failed", message=f"{image}: {error}")
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
        status, track, result = result_of(each, progress)
    except UserError as error:
        return JobResult(each.image.name, "failed", message=str(error))
    except Exception as error:  # a bug on one image of thousands must not cost the others
        traceback.print_exc()
        return JobResult(each.image.name, "failed", message=f"{each.image}: {type(error).__name__}: {error}")
    entries = result["points"] if track == 1 else result
    sought, key = (job.POINT_NAMES[0], "name") if track == 1 else ("atypical", "class")
    found = sum(entry[key] == sought for entry in entries)
    return JobResult(each.image.name, status, found, len(entries), round(time.perf_counter() - started, 2))


def result_of(each: Job, progress: "Progress | None") -> tuple[str, int, Any]:
    """Status, track and result of an image; the files are written."""
    track = each.track or track_of_image(each.image)
    check_mpp(each.image, each.mpp, track)
    runner = load(each.system, track, each.model, each.device)
    logger.info("image %s, system %s", each.image.name, runner.system)
    result_path = each.folder / job.RESULT_NAMES[track]
    made = about_run(each, runner.system)
    result = read_done(each.folder / about.NAME, made, result_path)
    status = "done before" if result is not None else "done"
    check_writable(each.folder)
    if result is None:
        result = runner.result(each.image, each.mpp, progress)
        (each.folder / about.NAME).unlink(missing_ok=True)
        write_json(result_path, result)
        about.write_about(each.folder, made)
    logger.info("result %s%s", result_path, ", made before" if status == "done before" else "")
    if each.report and (status == "done" or not (each.folder / REPORTS[track]).exists()):
        _draw(each, track, result, runner)
    return status, track, result


def _draw(each: Job, track: int, result: Any, runner: Any) -> None:
    from midog.report.draw import draw

    default = runner.um_per_px if isinstance(runner, Track1) else 0.25
    subtypes = classify_with(each.model, each.device) if each.atypical and track == 1 else None
    logging.getLogger("midog.images").setLevel(logging.ERROR)  # what is odd about the file was said when it was run
    try:
        draw(track, each.image, result, each.folder, each.mpp, default, str(runner.system), subtypes)
    finally:
        logging.getLogger("midog.images").setLevel(logging.NOTSET)


def about_run(each: Job, system: Any) -> dict[str, Any]:
    """All that a result depends on, as written to about.json."""
    try:
        stat = each.image.stat()
    except OSError as error:
        raise UserError(f"{each.image}: cannot be read ({error.strerror}); check the path") from None
    return {
        "image": {"name": each.image.name, "bytes": stat.st_size, "modified": stat.st_mtime_ns},
        "um_per_px_given": each.mpp,
        "system": system.system,
        "version": system.version,
        "detector": msgspec.to_builtins(system.detector),
        "classifier": msgspec.to_builtins(system.classifier),
    }


def read_done(path: Path, made: dict[str, Any], result_path: Path) -> Any:
    """The result beside an about.json that says the same, or None."""
    try:
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(made)):
            return None
        return json.loads(result_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_summary(path: Path, results: list[JobResult]) -> None:
    """Write summary.csv whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(JobResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    write_file(path, text.getvalue())
