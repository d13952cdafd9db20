"""The container's entry point: one job in, one result file out."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from midog.errors import exit_code
from midog.files import check_writable, write_json
from midog.job import read_job

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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for networks (%(default)s)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    task = read_job(arguments.input)
    check_writable(arguments.output, "--output")
    from midog.run import load

    runner = load(arguments.system, task.socket.track, arguments.model, arguments.device)
    logger.info("image %s, system %s", task.image_name, runner.system)
    with runner.open(task.image_path, arguments.mpp, refuse_implausible=False) as image:
        result = runner.result(task.image_path, image)
    path = write_json(arguments.output / task.socket.result_name, result)
    logger.info("result %s, seconds %.2f", path, time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
