"""What a training needs of a GPU: its memory, how many images of a forward fit in it, and how long it computes.

    python -m resources.benchmark.training_size sztu yolo11x rtmdet_s focasnet convnextv2

Nothing is trained and no GPU is needed. One image, and two, go forward here, in the recipe's half precision: what
autograd keeps of them and how many operations that takes are counted. Weights, gradients, the optimiser's state and the
weight averages are added in float32. So the figures are computed, not measured: a GPU's own libraries and the loss take
`RESERVED` more, and `USED` of a GPU's peak is an assumption.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from midog.errors import exit_code
from midog.models import CLASSIFIERS, DETECTORS, build, classifier_options
from midog.system import read_system
from resources.train.kit.detector import DetectorRecipe
from resources.train.kit.recipes import Plan, read_plan, recipe_path, scripts_of
from resources.train.kit.second_stage import CandidateRecipe
from resources.train.kit.subtypes import AtypicalRecipe

GPUS_GB = 24, 40, 80
RESERVED = 0.15, 1.5e9  # a fraction of the memory, and bytes: CUDA itself, its libraries' workspace, the loss
PEAK, USED = 312e12, 0.3  # operations a second of an A100 in half precision, and what trainings reach of it
STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # of an optimiser, a weight
BACKWARD = 2  # times the forward's operations
TRACK_2_CROPS = 11_939  # of the challenge's training set


def plans_of(name: str) -> list[Plan[Any]]:
    """Every training of a system."""
    kinds = {"candidates": CandidateRecipe, "atypical": AtypicalRecipe}
    scripts = scripts_of(read_system(recipe_path(name, "")))
    return [read_plan(name, script, kinds.get(script, DetectorRecipe)) for script in scripts]


def network_of(plan: Plan[Any]) -> tuple[nn.Module, tuple[int, int]]:
    """The network that a plan trains, and the (height, width) of its images in px."""
    recipe = plan.training
    if plan.part == "detector":
        width, height = recipe.tile
        return build(DETECTORS, plan.detector.network, plan.detector.options), (height, width)
    part = plan.classifier
    side = getattr(recipe, "input_px", None) or part.input_px
    return build(CLASSIFIERS, part.network, classifier_options(part.network, part.options, side)), (side, side)


def kept_and_flops(network: nn.Module, images: torch.Tensor, half: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of some images, and operations of their forward."""
    kept: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        output = network.eval()(images)  # batch norm keeps the same, and measures no map of one pixel
    del output
    return sum(kept.values()), counter.get_total_flops()


def describe(name: str, plan: Plan[Any]) -> str:
    """A row of the table."""
    recipe = plan.training
    network, size = network_of(plan)
    weights = sum(each.numel() for each in network.parameters())
    averages = sum(momentum < 1 for momentum in recipe.ema_momentum)
    fixed = 4 * weights * (2 + STATES[recipe.optimizer] + averages)
    half = recipe.precision != "float32"
    (one, flops), (two, _) = (kept_and_flops(network, torch.rand(count, 3, *size), half) for count in (1, 2))
    an_image = two - one
    fixed += one - an_image  # copies of the weights in half precision
    fits = []
    for memory in GPUS_GB:
        room = memory * 1e9 * (1 - RESERVED[0]) - RESERVED[1] - fixed
        fits.append(min(recipe.batch, int(room // an_image)))
    steps_an_epoch = getattr(recipe, "steps_an_epoch", 0)
    trainings = 1 if steps_an_epoch else recipe.folds
    steps = (
        trainings
        * recipe.epochs
        * (steps_an_epoch or TRACK_2_CROPS * (recipe.folds - 1) // recipe.folds // recipe.batch)
    )
    operations = steps * recipe.batch * flops * (1 + BACKWARD)
    again = 1 / (1 + BACKWARD) if fits[-1] < recipe.batch else 0  # the first pass of several forwards
    hours = operations * (1 + again) / (PEAK * USED) / 3600
    return (
        f"| `{name}` {plan.part} | {weights / 1e6:.1f} M | {size[1]} x {size[0]} | {fixed / 1e9:.2f} GB | "
        f"{an_image / 1e6:.0f} MB | {recipe.batch} | {', '.join(map(str, fits))} | {steps:,} | "
        f"{3 * flops / 1e9:.0f} | {hours:.2f} |"
    )


def run(arguments: argparse.Namespace) -> None:
    print(
        "| training | weights | px | fixed | an image | batch | images a forward on 24, 40, 80 GB | steps | "
        "GFLOP an image | hours on one A100 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.systems:
        for plan in plans_of(name):
            print(describe(name, plan), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.training_size",
        description="Compute what trainings need of a GPU: memory, images of a forward, hours.",
    )
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="recipes of resources/systems")
    return exit_code(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
