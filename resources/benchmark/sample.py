"""Whether the detectors see in the drawn region what is drawn there.

    python -m resources.benchmark.sample [--seed 2025] [--system NAME ...]

For each system of Track 1: how many of the drawn figures and of the drawn imposters
it accepts, and how many other places. Networks that learned from real tissue are a
measure of how real the drawing is, and no more than that: an eye comes first.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from midog.errors import exit_code
from midog.evaluation.metrics import MATCH_UM, match
from midog.run import load
from midog.system import OWN_MODEL, load_system
from resources.data import synthetic


def shipped_systems() -> list[str]:
    """Names of the shipped systems of Track 1."""
    folders = sorted(path.parent for path in OWN_MODEL.glob("*/model.yaml"))
    return [folder.name for folder in folders if load_system(folder).track == 1]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.sample",
        description="How many of the drawn figures and imposters each Track 1 system accepts.",
    )
    parser.add_argument("--seed", type=int, default=2025, metavar="N", help="of the drawn region (%(default)s)")
    parser.add_argument("--system", nargs="+", dest="systems", metavar="NAME", help="(all that are shipped)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    pixels, figures, imposters = synthetic.region(arguments.seed)
    for name in arguments.systems or shipped_systems():
        found = load(name, track=1, model=OWN_MODEL).predict(pixels, synthetic.UM_PER_PX)
        places = found.centres[found.accepted]
        matched = match(np.concatenate([figures, imposters]), places, MATCH_UM / synthetic.UM_PER_PX) >= 0
        true, false = (int(part.sum()) for part in np.split(matched, [len(figures)]))
        print(
            f"{name}: accepted {true} of {len(figures)} figures, {false} of {len(imposters)} imposters, "
            f"{len(places) - true - false} elsewhere",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
