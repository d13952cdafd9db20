"""The container's entry point: one job in, one result file out."""

import argparse
import sys
import time
from pathlib import Path

from midog import job
from midog.errors import exit_code
from midog.system import OWN_MODEL, PLATFORM_MODEL, find_system, model_folder


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description="Run one MIDOG 2025 job: read inputs.json and its image, write the result as JSON."
    )
    parser.add_argument("--input", metavar="DIR", type=Path, default="/input", help="holds inputs.json (%(default)s)")
    parser.add_argument("--output", metavar="DIR", type=Path, default="/output", help="for the result (%(default)s)")
    parser.add_argument("--model", metavar="DIR", help=f"weights ({PLATFORM_MODEL}; where that is empty, {OWN_MODEL})")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the track's default)")
    parser.add_argument("--mpp", metavar="UM", type=float, help="um per pixel, if the image's own is wrong or missing")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for networks (%(default)s)")
    return parser.parse_args(argv)


def log(text):
    print(text, flush=True)


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def find_figures(task, system, arguments):
    """Track 1: every candidate's place in mm, with its probability of being a mitotic figure."""
    from midog.detect import find_figures

    return find_figures(task.image_path, system, arguments.device, arguments.mpp, warn, log)


def classify_stack(task, system, arguments):
    """Track 2: the class and P(atypical) of every page of the stack."""
    from midog.classify import classify_file

    return job.atypical_result(classify_file(task.image_path, system, arguments.device, warn, log))


HANDLERS = {1: find_figures, 2: classify_stack}  # by track


def run(arguments):
    started = time.perf_counter()
    task = job.read_job(arguments.input)
    track = task.socket.track
    job.check_writable(arguments.output)
    system = find_system(model_folder(arguments.model), arguments.system, track)
    log(f"image {task.image_name}, system {system.system}, weights {system.version}")
    result_path = arguments.output / task.socket.result_name
    job.write_result(result_path, HANDLERS[track](task, system, arguments))
    log(f"result {result_path}, seconds {time.perf_counter() - started:.2f}")


def main(argv=None):
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
