"""How fast Track 2 runs here, against what the machine must spend at least.

    python -m resources.benchmark.track2 [--system NAME] [--device cuda] [--exported output/openvino]

Prints the wall time of a whole job of 16 pages against `import torch` alone, by the number of views, and with what
`midog export-openvino` wrote; and the pages a second against the machine's own matrix product in float32. Run it with
nothing else on the machine.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from torch.utils.flop_counter import FlopCounterMode

from midog.engine.torch_engine import choose_device
from midog.engine.views import VIEWS
from midog.errors import exit_code
from midog.files import write_yaml
from midog.run import Track2
from midog.system import System, as_yaml, find_folder, load_system, model_folder
from resources.benchmark.job import entry_point
from resources.benchmark.machine import matrix_flops
from resources.data import synthetic

PAGES = 128  # of the warm process
JOB_PAGES = 16


def seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def with_views(system: System, views: int) -> System:
    """The system with another number of views."""
    assert system.classifier is not None
    return replace(system, classifier=replace(system.classifier, views=views))


def measure_process(system: Path, exported: Path | None, device: str, rounds: int) -> None:
    """Whole processes, in turn, so that the machine's mood is the same for both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_job(folder / "job", synthetic.stack(JOB_PAGES, seed=2025)[0])
        job = [sys.executable, entry_point(), "--input", str(folder / "job"), "--output", str(folder / "out")]
        job += ["--device", device, "--system", system.name, "--model"]
        commands = {"import torch": [sys.executable, "-c", "import torch"]}
        for views in VIEWS:
            model = folder / f"{views} views" / system.name
            model.mkdir(parents=True)
            for path in system.iterdir():
                if path.name != "model.yaml":
                    (model / path.name).symlink_to(path.resolve())
            write_yaml(model / "model.yaml", as_yaml(with_views(load_system(system), views)))
            commands[f"job of {JOB_PAGES} pages, {views} view{'s' * (views > 1)}"] = [*job, str(model.parent)]
        if exported:
            commands[f"job of {JOB_PAGES} pages, OpenVINO"] = [*job, str(exported)]
        walls: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                wall = seconds(command)
                if number:  # the first round fills the disk's cache
                    walls[name].append(wall)
    floor = statistics.median(walls["import torch"])
    for name, taken in walls.items():
        median = statistics.median(taken)
        print(f"{name:26s} median {median:.2f} s (least {min(taken):.2f}), {median / floor:.2f} x import torch")


def measure_pages(folder: Path, device: str) -> None:
    """Pages a second of the ensemble in a warm process, and the floor from its floating-point operations."""
    system = load_system(folder)
    pages = np.random.default_rng(0).integers(0, 256, (PAGES, 128, 128, 3), np.uint8)
    peak = matrix_flops(choose_device(device))
    print(f"matrix product, float32: {peak / 1e9:.0f} GFLOP/s")
    for views in VIEWS:
        runner = Track2(with_views(system, views), device)
        with FlopCounterMode(display=False) as counter:
            runner.classify(pages[:1])
        a_page = counter.get_total_flops()
        runner.classify(pages[:64])
        started = time.perf_counter()
        runner.classify(pages)
        rate = PAGES / (time.perf_counter() - started)
        print(
            f"{views} view(s): {rate:.1f} pages/s, {a_page / 1e9:.2f} GFLOP a page, "
            f"{rate * a_page / 1e9:.0f} GFLOP/s, {peak / (rate * a_page):.2f} x the floor"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.track2",
        description="How fast a system of Track 2 runs here: a whole job, and pages in a warm process.",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the systems' folders (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="folder in it (the default)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--exported", type=Path, metavar="DIR", help="weights that midog export-openvino wrote")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="jobs of each kind (%(default)s)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    system = find_folder(model_folder(arguments.model), arguments.system, track=2)
    measure_process(system, arguments.exported, arguments.device, arguments.rounds)
    with torch.inference_mode():
        measure_pages(system, arguments.device)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
