"""python -m midog predict | report | evaluate | tune: for use outside the platform."""

import argparse
import json
import sys
from pathlib import Path

from midog import job, predict
from midog.errors import UserError, exit_code
from midog.report.draw import draw
from midog.track import check_mpp


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m midog", description="Both tracks outside the platform.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict.add_arguments(
        commands.add_parser("predict", help="detect in regions and slides, or classify stacks: files or folders")
    )
    report = commands.add_parser("report", help="draw a region or slide, or a stack, with its result")
    report.add_argument("image", type=Path, metavar="IMAGE", help="what the result was made from")
    report.add_argument("result", type=Path, metavar="RESULT.json", help="what inference.py wrote for it")
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.html or contact-sheet.png")
    report.add_argument("--atypical", action="store_true", help="classify the mitotic figures, too (Track 2's default)")
    report.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if its own is wrong or missing")
    evaluate = commands.add_parser("evaluate", help="predictions against a ground truth, by the organisers' metrics")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="for metrics.json, plots and evaluation.html")
    evaluate.add_argument("--images", type=Path, metavar="DIR", help="of the images, for the page's worst errors")
    tune = commands.add_parser("tune", help="put the best operating point of validation predictions at .5")
    tune.add_argument("--model", type=Path, required=True, metavar="DIR/SYSTEM", help="its model.yaml is changed")
    tune.add_argument("--objective", choices=("f1", "ba"), help="F1 or balanced accuracy (what ranks the track)")
    tune.add_argument("--out", type=Path, metavar="DIR", help="for tuning.json and plots")
    for command in (evaluate, tune):
        command.add_argument("--track", type=int, choices=(1, 2), required=True, help="1: detection, 2: atypical")
        command.add_argument("--ground-truth", type=Path, required=True, metavar="FILE", help="the organisers' JSON")
        command.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="of predict, or of jobs")
    return parser.parse_args(argv)


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def log(text):
    print(text, flush=True)


def report(arguments):
    """Draw an image with a result that inference.py wrote."""
    track, result = read_result(arguments.result)
    check_mpp(arguments.image, arguments.mpp, track)
    job.check_writable(arguments.out)
    system = system_beside(arguments.result, arguments.image)
    draw(track, arguments.image, result, arguments.out, arguments.mpp, log, warn, system, arguments.atypical)


def system_beside(result, image):
    """Name and version of the system as `predict` left them beside its result, or None."""
    try:
        about = json.loads((result.parent / predict.ABOUT).read_text(encoding="utf-8"))
        return f"{about['system']}, weights {about['version']}" if about["image"]["name"] == image.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def evaluate(arguments):
    from midog.evaluate import run

    run(arguments, log, warn)


def tune(arguments):
    from midog.tune import run

    run(arguments, log, warn)


def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.command == "predict":
        return exit_code(predict.run, arguments, log, warn)
    return exit_code({"report": report, "evaluate": evaluate, "tune": tune}[arguments.command], arguments)


if __name__ == "__main__":
    sys.exit(main())
