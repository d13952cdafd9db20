"""midog predict | report | view | check | evaluate | tune | systems | export-openvino | train."""

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midog import __version__, job
from midog.arguments import add_device
from midog.errors import UserError, exit_code
from midog.files import check_writable, sha256_of
from midog.images.track import check_mpp
from midog.system import files_of, find_system, model_folder

TRAININGS = (
    "yolo11",
    "rtmdet",
    "focasnet",
    "centernet",
    "torchvision_detector",
    "candidates",
    "folds",
    "two_stages",
    "score_weight",
    "atypical",
    "mine",
    "ablation",
)  # in resources/train

EVALUATE: dict[str, Any] = {
    "description": "The organisers' figures of predictions, or of a system that is run for them.",
    "epilog": "midog evaluate --track 1 --data fields:-c1 --system NAME runs the system on all cases but c1. "
    "midog evaluate --track 1 --data fields --predictions out compares what midog predict wrote. "
    "midog evaluate --track 2 --folds OUT shows a training's figures out of fold and writes them there. "
    "Rows marked 'trained on' hold images that the system learned from: they are no test.",
}
TUNE: dict[str, Any] = {
    "description": "Choose the operating point of a system on validation data, which it has not learned from, and put "
    "it at .5, in its model.yaml. How good such a choice is, is measured by cross-validation over images.",
    "epilog": "midog tune --track 1 --data fields:c1,c2 --model model/NAME runs the system on two cases. "
    "midog tune --track 2 --folds OUT --model OUT/model/NAME takes the crops that each fold of its training held out: "
    "a single network's probability stands for the mean of all, and the calibration of that mean is changed.",
}
EXPORT: dict[str, Any] = {
    "description": "Write systems whose networks OpenVINO runs, on CPUs and without PyTorch.",
    "epilog": "midog predict --model DIR then runs them, also where 'midog[openvino]' alone is installed.",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    from midog import check as check_command
    from midog import predict as predict_command
    from midog.evaluation import inputs as evaluation_inputs
    from midog.report.protocols import FIELD_DIAMETER_MM

    parser = argparse.ArgumentParser(prog="midog", description="Both tracks outside the platform.")
    parser.add_argument("--version", action="version", version=f"midog {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="detect in regions and slides, or classify crops: files or folders")
    predict_command.add_arguments(predict)
    report = commands.add_parser("report", help="draw a region or slide, or crops, with its result")
    report.add_argument("image", type=Path, metavar="IMAGE", help="what the result was made from")
    report.add_argument(
        "result",
        type=Path,
        nargs="+",
        metavar="RESULT.json",
        help="what inference.py wrote for it; several, or a reader's reviewed.geojson too, are shown beside each other",
    )
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.html or contact-sheet.png")
    report.add_argument(
        "--any-image", action="store_true", help="draw on IMAGE even if RESULT.json was made from another one"
    )
    report.add_argument(
        "--figures",
        type=Path,
        action="append",
        default=[],
        metavar="REVIEWED.geojson",
        help="a reader's corrections, saved by the page or exported by QuPath, to report instead",
    )
    report.add_argument(
        "--areas", type=Path, metavar="AREAS.geojson", help="polygons to count in, and to leave out (class Exclude)"
    )
    report.add_argument(
        "--field-diameter",
        type=float,
        metavar="MM",
        help=f"of a high-power field ({FIELD_DIAMETER_MM:g})",
    )
    view = commands.add_parser("view", help="look at a result on its slide in the browser, and correct it")
    view.add_argument("result", type=Path, metavar="RESULT", help="mitotic-figures.json, or the folder that holds it")
    view.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE", help="what it was made from (the one beside it, or a folder up)"
    )
    view.add_argument("--port", type=int, metavar="N", help="of 127.0.0.1 (4744, or any that is free)")
    view.add_argument("--no-browser", action="store_true", help="only say the address")
    view.add_argument("--any-image", action="store_true", help="show IMAGE even if RESULT was made from another one")
    check = commands.add_parser(
        "check", help="whether a system works on your slides, by a region that you have counted"
    )
    check_command.add_arguments(check)
    for command in (predict, report, check):
        command.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
        add_device(command)
    for command in (predict, report, view, check):
        command.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if the file's is wrong or missing")
    for command in (predict, report):
        command.add_argument("--atypical", action="store_true", help="classify the mitotic figures, too, by Track 2's")
    evaluate = commands.add_parser("evaluate", help="predictions, or a system, against a ground truth", **EVALUATE)
    evaluation_inputs.add_arguments(evaluate)
    evaluate.add_argument("--model", metavar="DIR", help="folder of the systems' folders (as inference.py)")
    evaluate.add_argument(
        "--system",
        metavar="NAME",
        help="a folder in there: what runs, or what made the predictions (the track's default, or what midog predict "
        "noted beside them)",
    )
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="for metrics.json, plots and evaluation.html")
    evaluate.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images (Track 2: stacks), whose worst errors the page shows",
    )
    tune = commands.add_parser("tune", help="put the best operating point on validation data at .5", **TUNE)
    evaluation_inputs.add_arguments(tune)
    tune.add_argument(
        "--model", type=Path, required=True, metavar="DIR/SYSTEM", help="the system; its model.yaml is changed"
    )
    tune.add_argument(
        "--objective", choices=("f1", "ba"), help="F1, or balanced accuracy (Track 2 only); else what ranks the track"
    )
    tune.add_argument("--out", type=Path, metavar="DIR", help="for tuning.json, plots and cross-validated predictions")
    systems = commands.add_parser("systems", help="list the systems that are there, and check their weights")
    systems.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    export = commands.add_parser(
        "export-openvino", help="write systems for OpenVINO: faster on a CPU, without PyTorch", **EXPORT
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="for a folder of each system")
    export.add_argument("--system", nargs="+", metavar="NAME", help="folders of the weights (all that are there)")
    export.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    train = commands.add_parser("train", help="start a training by its name; its options follow")
    train.add_argument("name", choices=TRAININGS, help="a module of resources.train")
    train.add_argument("options", nargs=argparse.REMAINDER, help="of the training; --help lists them")
    return parser.parse_args(argv)


def predict(arguments: argparse.Namespace) -> None:
    """Run images."""
    from midog.predict import run

    run(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Draw an image with a result that inference.py or predict wrote, at the um per pixel that it was made with."""
    if len(arguments.result) > 1:
        compare(arguments)
        return
    from midog.report.binding import bind
    from midog.report.draw import draw
    from midog.report.protocols import FIELD_DIAMETER_MM, check_field

    (path,) = arguments.result
    track, result = read_result(path)
    if len(arguments.figures) > 1:
        given = " and ".join(map(str, arguments.figures))
        raise UserError(f"--figures {given}: reviews are not merged; give one, or a report of each in its own --out")
    check_mpp(arguments.image, arguments.mpp, track)
    field_diameter = FIELD_DIAMETER_MM if arguments.field_diameter is None else arguments.field_diameter
    check_field(field_diameter)
    check_writable(arguments.out)
    bound = bind(path, arguments.image, arguments.mpp, arguments.any_image, arguments.model)
    subtypes, subtype_errors = None, bound.subtype_errors
    if arguments.atypical:
        from midog.run import classify_with, load

        runner = load(track=2, model=arguments.model, device=arguments.device, precision=arguments.precision)
        subtypes, subtype_errors = classify_with(runner), runner.subtype_errors
    draw(
        track,
        arguments.image,
        result,
        arguments.out,
        bound.resolution,
        bound.doubts,
        bound.system,
        subtypes,
        bound.default_um_per_px,
        result_sha256=sha256_of(path),
        figures=next(iter(arguments.figures), None),
        any_image=arguments.any_image,
        areas=arguments.areas,
        field_diameter_mm=field_diameter,
        reliability=bound.reliability,
        subtype_errors=subtype_errors,
    )


def compare(arguments: argparse.Namespace) -> None:
    """Draw several results of one image beside each other."""
    from midog.report.comparison import compare

    options = {
        "--figures": "figures",
        "--areas": "areas",
        "--field-diameter": "field_diameter",
        "--atypical": "atypical",
    }
    given = [option for option, name in options.items() if getattr(arguments, name) not in (None, False, [])]
    if given:
        raise UserError(f"{given[0]}: is of a report of one result; give one RESULT.json, or leave it out")
    check_mpp(arguments.image, arguments.mpp, None)
    check_writable(arguments.out)
    shared = arguments.mpp, arguments.any_image, arguments.model
    compare(arguments.image, arguments.result, arguments.out, *shared)


def view(arguments: argparse.Namespace) -> None:
    """Show a result on its slide in the browser."""
    from midog.view import run

    run(arguments)


def check(arguments: argparse.Namespace) -> int:
    """Hold a system against a count of a laboratory's own; the exit code."""
    from midog.check import run

    return run(arguments)


def read_result(path: Path) -> tuple[int, Any]:
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
        confidences = [entry["confidence"] for entry in result if entry["class"] in ("atypical", "normal")]
        if len(confidences) < len(result) or not all(job.is_finite(each) and 0 <= each <= 1 for each in confidences):
            raise ValueError("unknown class or confidence")
        return 2, result
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a result of Track 1 or 2 ({error}); run inference.py again") from None


def evaluate(arguments: argparse.Namespace) -> None:
    """Compare predictions with a ground truth."""
    from midog.evaluation.evaluate import run

    run(arguments)


def tune(arguments: argparse.Namespace) -> None:
    """Choose an operating point."""
    from midog.evaluation.tune import run

    run(arguments)


def systems(arguments: argparse.Namespace) -> None:
    """List systems."""
    folder = model_folder(arguments.model)
    for name in _names(folder):
        system = find_system(folder, name, None)
        parts = [f"{part.network} x {len(part.members)}" for part in (system.detector, system.classifier) if part]
        files = [file for member in system.members for file in files_of(system.path_of(member))]
        size = sum(file.stat().st_size for file in files) / 1e6
        line = f"{name:24s} track {system.track}  version {system.version:6s} {' + '.join(parts):28s} {size:6.1f} MB"
        print(line + "  for OpenVINO" * system.is_exported)


def _names(folder: Path) -> list[str]:
    """The systems in a model folder."""
    found = sorted(path.parent.name for path in folder.glob("*/model.yaml"))
    if not found:
        raise UserError(f"{folder}: no system in this folder; give --model another one")
    return found


def export_openvino(arguments: argparse.Namespace) -> None:
    """Write systems for OpenVINO."""
    from midog.engine.export_openvino import export

    check_writable(arguments.out, "--out")
    folder = model_folder(arguments.model)
    for name in arguments.system or _names(folder):
        print(export(find_system(folder, name, None), arguments.out))


def train(arguments: argparse.Namespace) -> None:
    """Start a training as `python -m resources.train.NAME` does; what it prints and returns is its own."""
    sys.argv = [f"midog train {arguments.name}", *arguments.options]
    runpy.run_module(f"resources.train.{arguments.name}", run_name="__main__")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    commands = {"predict": predict, "report": report, "view": view, "check": check, "evaluate": evaluate, "tune": tune}
    commands |= {"systems": systems, "export-openvino": export_openvino, "train": train}
    return exit_code(commands[arguments.command], arguments)


if __name__ == "__main__":
    sys.exit(main())
