"""How fast images are read: opening, every window of 512 x 512 px at 20 % overlap, and an overview.

    python -m resources.benchmark.reading IMAGE ... [--against CHECKOUT]

Each image is read in a process of its own, rounds by turns; the fastest round of each counts. --against reads the same
images with the code of another checkout, by turns with ours, and prints ours over its. Run it with nothing else on the
machine.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from midog.errors import UserError, exit_code

ROOT = Path(__file__).parents[2]
# Runs on any version of the package; midog.images.slide is its whole interface to files.
READ = """
import json, sys, time
started = time.perf_counter()
from midog.images.slide import open_slide
from midog.images.tiles import grid
slide = open_slide(sys.argv[1], 0.25)
opened = time.perf_counter()
places = grid(*slide.size, (512, 512), 0.2)[:400].tolist()
for x, y in places:
    slide.read(x, y, min(512, slide.size[0]), min(512, slide.size[1]))
read = time.perf_counter()
slide.overview(2000)
seen = time.perf_counter()
print(json.dumps([1000 * (opened - started), 1000 * (read - opened) / len(places), 1000 * (seen - read)]))
"""
COLUMNS = "import and open", "a window", "overview"


def measure(image: Path, checkout: Path) -> list[float]:
    """Milliseconds of each of `COLUMNS`, in a fresh process with the code of a checkout."""
    command = [sys.executable, "-c", READ, str(image.resolve())]
    run = subprocess.run(
        command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True
    )
    if run.returncode:
        raise UserError(f"{image}: cannot be read with {checkout} ({run.stderr.strip().splitlines()[-1]})")
    times: list[float] = json.loads(run.stdout)
    return times


def compare(arguments: argparse.Namespace) -> None:
    """Print a line an image and quantity."""
    checkouts = [ROOT, *([arguments.against.resolve()] if arguments.against else [])]
    for image in arguments.images:
        rounds: list[list[list[float]]] = [[] for _ in checkouts]
        for _ in tqdm(range(arguments.rounds), image.name, disable=None, leave=False):
            for times, checkout in zip(rounds, checkouts, strict=True):
                times.append(measure(image, checkout))
        best = [[min(each) for each in zip(*times, strict=True)] for times in rounds]
        for number, column in enumerate(COLUMNS):
            ours, *theirs = (each[number] for each in best)
            ratio = f"  against {theirs[0]:8.2f} ms, ratio {ours / theirs[0]:.2f}" if theirs else ""
            print(f"{image.name:40s} {column:16s} {ours:8.2f} ms{ratio}", flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="region, slide, or folder of a DICOM one")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of this repository")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="each (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(compare, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
