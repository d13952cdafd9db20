"""python -m midog predict | report: for use outside the platform."""

import argparse
import json
import math
import sys
from functools import partial
from itertools import islice
from pathlib import Path

from midog import job
from midog.errors import UserError, brief, exit_code
from midog.stack import CROP_SIDE
from midog.system import find_system, model_folder

RESULT_NAMES = {socket.track: socket.result_name for socket in job.SOCKETS.values()}
LARGEST_CROP_SIDE = 512  # px; crops scanned more finely are larger than the platform's


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m midog", description="Both tracks outside the platform.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="detect in a region or slide, or classify a stack, and draw it")
    predict.add_argument("image", type=Path, metavar="FILE", help="region or slide, or multi-page stack of crops")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the result and its picture")
    predict.add_argument("--track", type=int, choices=(1, 2), help="1: detect, 2: classify (what FILE looks like)")
    predict.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    predict.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    report = commands.add_parser("report", help="draw a region or slide, or a stack, with its result")
    report.add_argument("image", type=Path, metavar="IMAGE", help="what the result was made from")
    report.add_argument("result", type=Path, metavar="RESULT.json", help="what inference.py wrote for it")
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="for overlay.png or contact-sheet.png")
    for command in (predict, report):
        command.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if its own is wrong or missing")
    return parser.parse_args(argv)


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def log(text):
    print(text, flush=True)


def silent(text):
    """For an image that is opened again: its warnings have been said."""


def predict(arguments):
    """Run the system of a file's track; write its result and picture."""
    track = arguments.track or track_of_image(arguments.image)
    check_mpp(arguments, track)
    job.check_writable(arguments.out)
    system = find_system(model_folder(arguments.model), arguments.system, track)
    log(f"image {arguments.image.name}, system {system.system}, weights {system.version}")
    result = {1: find_figures, 2: classify_stack}[track](system, arguments)
    result_path = arguments.out / RESULT_NAMES[track]
    job.write_result(result_path, result)
    log(f"result {result_path}")
    draw(track, result, arguments, silent)


def find_figures(system, arguments):
    from tqdm import tqdm

    from midog.detect import find_figures

    bar = partial(tqdm, desc="tiles", unit="tile", disable=None)  # None: only on a terminal
    return find_figures(arguments.image, system, arguments.device, arguments.mpp, warn, log, bar)


def classify_stack(system, arguments):
    from midog.classify import classify_file

    return job.atypical_result(classify_file(arguments.image, system, arguments.device, warn, log))


def report(arguments):
    """Draw an image with a result that inference.py wrote."""
    track, result = read_result(arguments.result)
    check_mpp(arguments, track)
    job.check_writable(arguments.out)
    draw(track, result, arguments, warn)


def draw(track, result, arguments, warn):
    """Write the picture of a result: an overlay for Track 1, contact sheets for Track 2."""
    image, out = arguments.image, arguments.out
    if track == 1:
        from midog.report.overlay import write_overlay
        from midog.slide import open_slide

        with open_slide(image, warn, arguments.mpp) as slide:
            log(f"overlay {write_overlay(slide, result, out, image.name, warn)}")
        return
    from midog.report.contact_sheet import write_contact_sheets
    from midog.stack import Stack

    try:
        paths = write_contact_sheets(Stack(image, warn), result, out, image.name)
    except ValueError:
        raise UserError(f"{image}: not as many pages as the result has entries; give this result's own stack") from None
    for path in paths:
        log(f"contact sheet {path}")


def check_mpp(arguments, track):
    if arguments.mpp is not None and track == 2:
        raise UserError(f"{arguments.image}: the resolution of a stack is read from the file; leave --mpp out")


def read_result(path):
    """The track of a result file, by its shape, and the result.

    Raises:
        UserError: it is a result of neither track.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.get("type") == "Multiple points":
            job.check_detection_result(result)
            return 1, result
        if not isinstance(result, list):
            raise ValueError('neither a list nor of type "Multiple points"')
        if not all(entry["class"] in ("atypical", "normal") and 0 <= entry["confidence"] <= 1 for entry in result):
            raise ValueError("unknown class or confidence")
        return 2, result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result of Track 1 or 2 ({error}); run inference.py again") from None


def track_of_image(path):
    """1 for a region or slide, 2 for a stack of crops.

    Raises:
        UserError: the file cannot be read, or may be either.
    """
    if path.is_dir() or path.suffix.lower() not in job.IMAGE_SUFFIXES:
        return 1  # only these hold pages
    sides, several = first_page(path)
    small = max(sides) <= LARGEST_CROP_SIDE
    if sides == (CROP_SIDE, CROP_SIDE) or small and several:
        return 2
    if small or several:
        pages = "several pages" if several else "one page"
        raise UserError(
            f"{path}: {pages} of {sides[0]} x {sides[1]} px may be a region or a stack of crops; "
            "say --track 1 to detect, --track 2 to classify"
        )
    return 1


def first_page(path):
    """(width, height) px of the first page, and whether another one of this size follows."""
    try:
        if path.suffix.lower() == ".mha":
            import SimpleITK as sitk

            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            width, height, *pages = reader.GetSize()
            return (width, height), math.prod(pages) > 1
        import tifffile

        with tifffile.TiffFile(path) as tif:
            first, *second = islice(tif.pages, 2)
            return (first.imagewidth, first.imagelength), any(page.shape == first.shape for page in second)
    except Exception as error:  # a damaged file can make a library raise anything
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the path, or copy the file again") from None


def main(argv=None):
    arguments = parse_arguments(argv)
    return exit_code({"predict": predict, "report": report}[arguments.command], arguments)


if __name__ == "__main__":
    sys.exit(main())
