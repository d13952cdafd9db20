"""python -m midog predict | report: for use outside the platform."""

import argparse
import json
import sys
from pathlib import Path

from midog import job
from midog.errors import UserError, exit_code
from midog.system import find_system, model_folder

RESULT_NAME = job.SOCKETS["stacked-histopathology-roi-cropouts"].result_name


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m midog", description="Track 2 outside the platform.")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="classify the pages of a stack and draw them")
    predict.add_argument("image", type=Path, metavar="FILE", help="multi-page .tif, .tiff or .mha of crops")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the result and the contact sheet")
    predict.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    predict.add_argument("--system", metavar="NAME", help="a folder of the weights (the default system)")
    predict.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    report = commands.add_parser("report", help="draw the pages of a stack with their classes")
    report.add_argument("image", type=Path, metavar="IMAGE", help="the stack")
    report.add_argument("result", type=Path, metavar="RESULT.json", help="what inference.py wrote for it")
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="for contact-sheet.png")
    return parser.parse_args(argv)


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def predict(arguments):
    """Classify one stack; write its result and contact sheet."""
    from midog.classify import classify_file

    job.check_writable(arguments.out)
    system = find_system(model_folder(arguments.model), arguments.system, track=2)
    print(f"image {arguments.image.name}, system {system.system}, weights {system.version}", flush=True)
    result = job.atypical_result(classify_file(arguments.image, system, arguments.device, warn, print))
    job.write_result(arguments.out / RESULT_NAME, result)
    print(f"result {arguments.out / RESULT_NAME}")
    draw(arguments.image, result, arguments.out)


def report(arguments):
    """Draw a stack with a result that inference.py wrote."""
    try:
        result = json.loads(arguments.result.read_text(encoding="utf-8"))
        if not all(entry["class"] in ("atypical", "normal") and 0 <= entry["confidence"] <= 1 for entry in result):
            raise ValueError("unknown class or confidence")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{arguments.result}: not a result of Track 2 ({error}); run inference.py again") from None
    job.check_writable(arguments.out)
    draw(arguments.image, result, arguments.out)


def draw(image, result, out):
    from midog.report.contact_sheet import write_contact_sheets
    from midog.stack import Stack

    try:
        paths = write_contact_sheets(Stack(image, lambda text: None), result, out, image.name)
    except ValueError:
        raise UserError(f"{image}: not as many pages as the result has entries; give this result's own stack") from None
    for path in paths:
        print(f"contact sheet {path}")


def main(argv=None):
    arguments = parse_arguments(argv)
    return exit_code({"predict": predict, "report": report}[arguments.command], arguments)


if __name__ == "__main__":
    sys.exit(main())
