"""python -m midog predict: what a job is to inference.py, for files and folders, here or on many machines.

Each image gets a folder of its own, with the result, `about.json` (which image,
system and weights made it) and, if asked for, the report. An image whose
`about.json` still holds is not run again, so a batch that was stopped goes on
where it was, and new weights make new results.
"""

import csv
import io
import json
import threading
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from midog import job
from midog.errors import UserError
from midog.report.draw import draw
from midog.report.export import write_file
from midog.slide import SUFFIXES
from midog.system import find_system, model_folder
from midog.track import check_mpp, track_of_image

RESULT_NAMES = {socket.track: socket.result_name for socket in job.SOCKETS.values()}
ABOUT = "about.json"
SUMMARY = "summary.csv"
REPORTS = {1: "report.html", 2: "contact-sheet.png"}  # by track, what --report leaves
SCHEDULER_SECONDS = 10
ONE_AT_A_TIME = threading.Lock()  # a slide takes all processors, however many threads its worker has


@dataclass(frozen=True)
class Work:
    """One image, and all that another machine needs to know about it.

    Attributes:
        image, folder: where it lies, and where its result goes; absolute.
        track: 1, 2, or None for what the image looks like.
        model, system, device, mpp: as given to the command.
        report: whether to draw it.
    """

    image: Path
    folder: Path
    track: int | None
    model: str | None
    system: str | None
    device: str
    mpp: float | None
    report: bool


@dataclass(frozen=True)
class Outcome:
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


def add_arguments(parser):
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="FILE", help="region, slide or stack of crops, or a folder of them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder an image")
    parser.add_argument("--track", type=int, choices=(1, 2), help="1: detect, 2: classify (what FILE looks like)")
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if the images' own is wrong or missing")
    parser.add_argument("--report", action="store_true", help="draw each result, too")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, whose workers take whole images")


def run(arguments, log, warn):
    """Run every image; a failed one does not stop the others.

    Args:
        arguments: of `add_arguments`.
        log, warn: called with one line each.

    Raises:
        UserError: nothing to do, or at least one image failed.
    """
    works = plan(arguments)
    job.check_writable(arguments.out)
    outcomes = []
    for outcome in spread(works, arguments.scheduler, log, warn) if arguments.scheduler else here(works, log, warn):
        outcomes.append(outcome)
        write_summary(arguments.out / SUMMARY, outcomes)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if len(works) > 1:
        counts = Counter(outcome.status for outcome in outcomes)
        said = ", ".join(f"{counts[status]} {status}" for status in ("done", "done before", "failed") if counts[status])
        log(f"{len(works)} images: {said}; {arguments.out / SUMMARY}")
    if failed and len(works) == 1:
        raise UserError(failed[0].message)
    if failed:
        raise UserError(f"{len(failed)} of {len(works)} images failed, see above; mend them and run the same again")


def plan(arguments):
    """A `Work` for every image that the arguments name, each with a folder of its own.

    Raises:
        UserError: an empty folder, or two images of one name.
    """
    images = [image for path in arguments.images for image in expand(path)]
    repeated = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]}: two images of this name; give them to two commands with another --out each")
    shared = (arguments.track, arguments.model and str(Path(arguments.model).resolve()), arguments.system)
    shared += (arguments.device, arguments.mpp, arguments.report)
    return [Work(image.resolve(), (arguments.out / image.name).resolve(), *shared) for image in images]


def expand(path):
    """The images that a path stands for: a folder's, or itself; a folder of DICOM files is one slide."""
    if not path.is_dir():
        return [path]
    inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.is_dir())
    if any(each.suffix.lower() == ".dcm" for each in inside):
        return [path]
    if not inside:
        raise UserError(f"{path}: no image in this folder; known are {' '.join(sorted(SUFFIXES))}")
    return inside


def here(works, log, warn):
    """Run the images one after the other; yields `Outcome`s."""
    from tqdm import tqdm

    several = None if len(works) > 1 else True  # None: a bar only on a terminal
    bar = tqdm(works, "images", unit="image", disable=several)

    def beside(say):
        def write(text):
            bar.clear()
            say(text)

        return write

    def tiles(places):
        return tqdm(places, "tiles", unit="tile", disable=None, leave=len(works) == 1)

    for work in bar:
        outcome = process(work, beside(log), beside(warn), tiles)
        if outcome.status == "failed" and len(works) > 1:
            beside(warn)(f"failed: {outcome.message}")
        yield outcome


def spread(works, address, log, warn):
    """Hand the images to the workers of a Dask scheduler; yields `Outcome`s as they come.

    A worker that dies loses its own image only: the scheduler gives it to another one.
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
            warn(f"{address}: no worker has joined yet; start some with `dask worker {address}`")
        futures = {client.submit(remote, work, key=f"midog-{work.folder}", pure=False): work for work in works}
        for future in tqdm(as_completed(futures), "images", len(futures), unit="image", disable=None):
            try:
                outcome, warnings = future.result()
            except Exception as error:  # the scheduler gave the image up, whatever its workers died of
                image = futures[future].image
                outcome, warnings = Outcome(image.name, "failed", message=f"{image}: {error}"), []
            for text in warnings:
                warn(text)
            if outcome.status == "failed" and len(works) > 1:
                warn(f"failed: {outcome.message}")
            yield outcome


def remote(work):
    """On a worker: the `Outcome` of an image, and the warnings."""
    warnings = []
    with ONE_AT_A_TIME:
        return process(work, lambda text: None, warnings.append, lambda places: places), warnings


def process(work, log, warn, progress):
    """Run one image, or find that it was run; its `Outcome`, whatever happens."""
    started = time.perf_counter()
    try:
        status, track, result = result_of(work, log, warn, progress)
    except UserError as error:
        return Outcome(work.image.name, "failed", message=str(error))
    except Exception as error:  # a bug on one image of thousands must not cost the others
        traceback.print_exc()
        return Outcome(work.image.name, "failed", message=f"{work.image}: {type(error).__name__}: {error}")
    entries = result["points"] if track == 1 else result
    sought, key = (job.POINT_NAMES[0], "name") if track == 1 else ("atypical", "class")
    found = sum(entry[key] == sought for entry in entries)
    return Outcome(work.image.name, status, found, len(entries), round(time.perf_counter() - started, 2))


def result_of(work, log, warn, progress):
    """Status, track and result of an image; the files are written."""
    track = work.track or track_of_image(work.image)
    check_mpp(work.image, work.mpp, track)
    system = find_system(model_folder(work.model), work.system, track)
    log(f"image {work.image.name}, system {system.system}, weights {system.version}")
    result_path = work.folder / RESULT_NAMES[track]
    about = about_run(work, system)
    result = read_done(work.folder / ABOUT, about, result_path)
    status = "done before" if result is not None else "done"
    job.check_writable(work.folder)
    if result is None:
        if track == 1:
            from midog.detect import find_figures

            result = find_figures(work.image, system, work.device, work.mpp, warn, log, progress)
        else:
            from midog.classify import classify_file

            result = job.atypical_result(classify_file(work.image, system, work.device, warn, log))
        (work.folder / ABOUT).unlink(missing_ok=True)
        job.write_result(result_path, result)
        job.write_result(work.folder / ABOUT, about)
    log(f"result {result_path}" + (", made before" if status == "done before" else ""))
    if work.report and (status == "done" or not (work.folder / REPORTS[track]).exists()):
        made_by = f"{system.system}, weights {system.version}"
        draw(track, work.image, result, work.folder, work.mpp, log, lambda text: None, made_by)
    return status, track, result


def about_run(work, system):
    """All that a result depends on, as written to about.json."""
    parts = [*([system.detector] if system.detector else []), *system.members]
    try:
        stat = work.image.stat()
    except OSError as error:
        raise UserError(f"{work.image}: cannot be read ({error.strerror}); check the path") from None
    return {
        "image": {"name": work.image.name, "bytes": stat.st_size, "modified": stat.st_mtime_ns},
        "um_per_px_given": work.mpp,
        "system": system.system,
        "version": system.version,
        "views": system.views,
        "parts": json.loads(json.dumps([asdict(part) for part in parts])),
    }


def read_done(path, about, result_path):
    """The result beside an about.json that says the same, or None."""
    try:
        if json.loads(path.read_text(encoding="utf-8")) != about:
            return None
        return json.loads(result_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_summary(path, outcomes):
    """Write summary.csv whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(outcome) for outcome in outcomes)
    write_file(path, text.getvalue())
