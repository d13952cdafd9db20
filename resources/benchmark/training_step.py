"""How fast a classifier's training step is here, with and without what a CPU's trainings have for it.

    python -m resources.benchmark.training_step [--system efficientnet_lite0]

A step is a forward and a backward pass of a batch of the recipe, on noise, with random weights. Four ways by turns, so
that they share whatever else the machine does: PyTorch's own bfloat16, with `kit.depthwise`, with
`midog.engine.memory`, and with both, which is how trainings run. What the latter sets holds for a whole process, so
each way has one of its own. Run it with nothing else on the machine.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from midog.engine.memory import keep_memory
from midog.errors import exit_code
from midog.models import CLASSIFIERS, build, classifier_options
from resources.train.kit.depthwise import FastDepthwise
from resources.train.kit.recipes import read_plan
from resources.train.kit.subtypes import AtypicalRecipe

STEPS, ROUNDS = 5, 3
WAYS = {
    "PyTorch's own": (False, False),
    "depth-wise gradients": (True, False),
    "memory kept": (False, True),
    "both": (True, True),
}


def images_a_second(system: str, way: str) -> float:
    """Of a few steps, after one that does not count."""
    fast, kept = WAYS[way]
    if kept:
        keep_memory()
    plan = read_plan(system, "atypical", AtypicalRecipe, [], None)
    part, batch = plan.classifier, plan.training.batch
    network = build(CLASSIFIERS, part.network, classifier_options(part.network, part.options, part.input_px))
    network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 3, part.input_px, part.input_px).contiguous(memory_format=torch.channels_last)
    begun = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16), FastDepthwise() if fast else contextlib.nullcontext():
            logits = network(images)
        logits.float().square().mean().backward()
    return STEPS * batch / (time.perf_counter() - begun)


def measure(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.training_step",
        description="How fast a classifier's training step is on this CPU, four ways.",
    )
    parser.add_argument(
        "--system", default="efficientnet_lite0", metavar="NAME", help="a recipe of Track 2 (%(default)s)"
    )
    system = parser.parse_args(argv).system
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[way].append(pool.apply(images_a_second, (system, way)))
    slowest = statistics.median(found["PyTorch's own"])
    for way, speeds in found.items():
        speed = statistics.median(speeds)
        print(f"{way:22} {speed:6.1f} images/s, {speed / slowest:.2f} x")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
