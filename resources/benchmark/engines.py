"""How fast each shipped network runs here, by engine and precision.

    python -m midog export-openvino --out output/openvino
    python -m resources.benchmark.engines [--exported output/openvino] [--system NAME ...]
    python -m resources.benchmark.engines --device cuda

The first network of each part of each system, on tiles or crops as inference gives them to it: milliseconds each, the
median of rounds in which every way takes its turn. Run it with nothing else on the machine.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.arguments import PRECISIONS
from midog.engine import classifier, detector, two_stages
from midog.engine.network import Network, Stored
from midog.engine.weights import engine_for
from midog.errors import exit_code
from midog.models import DENSE
from midog.system import System, find_system, model_folder


def networks_of(system: System, device: str) -> Iterator[tuple[str, Network, int, tuple[int, int]]]:
    """Kind and precision, network, batch, and (height, width) of its input."""
    engine = engine_for(system, device)
    for precision in PRECISIONS:
        how = f"{engine.name}, {engine.type_of(precision)}"
        if part := system.detector:
            path = system.path_of(part.members[0])
            network = engine.load(Stored("detector", part.network, part.options, path, precision))
            batch = detector.DENSE_BATCH_SIZE if part.network in DENSE else detector.BATCH_SIZE
            yield f"detector: {how}", network, batch[engine.device], part.tile[::-1]
        if second := system.classifier:
            path = system.path_of(second.members[0])
            stored = classifier.stored_network(second, second.members[0], path)
            network = engine.load(stored._replace(precision=precision))
            batch = two_stages.BATCH_SIZE if system.track == 1 else classifier.BATCH_SIZE
            crops = batch[engine.device] * (second.views if system.track == 2 else 1)
            yield f"classifier: {how}", network, crops, (second.input_px, second.input_px)


def measure(systems: Sequence[System], device: str, rounds: int) -> None:
    """Print a line for each network of systems with the same weights."""
    ways = [way for system in systems for way in networks_of(system, device)]
    inputs: dict[tuple[int, tuple[int, int]], NDArray[np.float32]] = {}
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, network, batch, sides in ways:
            if (batch, sides) not in inputs:
                pixels = np.random.default_rng(0).random((batch, *sides, 3), np.float32)
                inputs[batch, sides] = pixels.transpose(0, 3, 1, 2)
            started = time.perf_counter()
            network(inputs[batch, sides])
            if number:  # the first is slower
                times.setdefault(name, []).append(1000 * (time.perf_counter() - started) / batch)
    for part in ("detector", "classifier"):
        found = {name.partition(": ")[2]: np.median(each) for name, each in times.items() if name.startswith(part)}
        if found:
            first = next(iter(found.values()))
            shown = "; ".join(f"{name} {each:.2f} ({first / each:.1f} x)" for name, each in found.items())
            print(f"{systems[0].system}, {part}, ms: {shown}", flush=True)


def run(arguments: argparse.Namespace) -> None:
    folder = model_folder(arguments.model)
    names = arguments.system or sorted(path.parent.name for path in folder.glob("*/model.yaml"))
    for name in names:
        folders = [folder, *filter(None, [arguments.exported])]
        measure([find_system(each, name, None) for each in folders], arguments.device, arguments.rounds)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.engines",
        description="How fast each network of the systems runs here, by engine and precision.",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights for PyTorch (as inference.py)")
    parser.add_argument("--exported", type=Path, metavar="DIR", help="weights that midog export-openvino wrote")
    parser.add_argument("--system", nargs="+", metavar="NAME", help="folders in both (all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="forwards of each (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
