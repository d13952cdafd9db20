"""The container's entry point: one job in, one result file out; with --serve, job after job."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from midog.arguments import add_device
from midog.errors import UserError, exit_code
from midog.files import check_writable, write_json
from midog.job import read_job

PLATFORM_PORT = 4743  # where the platform calls a container in invoke mode
TRACKS = {"": (1, 2), "1": (1,), "2": (2,)}  # by MIDOG_TRACK, what invoke mode loads before the first job

logger = logging.getLogger("midog.inference")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run one MIDOG 2025 job: read inputs.json and its image, write the result as JSON."
    )
    parser.add_argument("--input", metavar="DIR", type=Path, default="/input", help="holds inputs.json (%(default)s)")
    parser.add_argument("--output", metavar="DIR", type=Path, default="/output", help="for the result (%(default)s)")
    parser.add_argument("--model", metavar="DIR", help="weights (/opt/ml/model; where that is empty, our own)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if the image's own is wrong or missing")
    add_device(parser)
    parser.add_argument(
        "--serve",
        metavar="PORT",
        type=int,
        nargs="?",
        const=PLATFORM_PORT,
        help="invoke mode: run the job whenever a POST to /invoke asks for it (%(const)s); networks are loaded once, "
        "for the track in the environment's MIDOG_TRACK, or for both",
    )
    return parser.parse_args(argv)


def answer(arguments: argparse.Namespace) -> None:
    """Run the job that lies in the input folder."""
    started = time.perf_counter()
    task = read_job(arguments.input)
    check_writable(arguments.output, "--output")
    from midog.run import load

    runner = load(arguments.system, task.socket.track, arguments.model, arguments.device, arguments.precision)
    logger.info("image %s, system %s", task.image_name, runner.system)
    with runner.open(task.image_path, arguments.mpp, refuse_implausible=False) as image:
        result = runner.result(task.image_path, image)
    path = write_json(arguments.output / task.socket.result_name, result)
    logger.info("result %s, seconds %.2f", path, time.perf_counter() - started)


def load(arguments: argparse.Namespace, tracks: Sequence[int]) -> None:
    """What `answer` needs for any job of the tracks; `arguments.model` is then the folder that it comes from."""
    from midog.run import load_ahead
    from midog.system import model_folder

    arguments.model = model_folder(arguments.model)  # once, because it may have to warn
    load_ahead(tracks, arguments.system, arguments.model, arguments.device, arguments.precision)


def run(arguments: argparse.Namespace) -> None:
    if arguments.serve is None:
        answer(arguments)
        return
    chosen = os.environ.get("MIDOG_TRACK", "")
    if chosen not in TRACKS:
        raise UserError(f"MIDOG_TRACK: {chosen!r} is no track; set it to 1 or 2, or leave it out for both")
    from midog.serve import serve

    serve(arguments.serve, partial(load, arguments, TRACKS[chosen]), partial(answer, arguments), arguments.input)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
