"""From labelled fields to a system: what the scripts of all detectors share that the plain loop trains."""

import argparse
from dataclasses import asdict, dataclass, replace

import yaml

from midog.engine.classifier import choose_device
from midog.engine.detector import NETWORKS
from midog.errors import UserError
from midog.system import DetectorDesign
from resources.train.common import prepare_out, seed_everything
from resources.train.detection_loop import DetectionLoop, LoopRecipe
from resources.train.detector import DATA_ARGUMENTS, add_data_arguments, names_of, read_plan, read_training_data
from resources.train.detector_export import export_detector
from resources.train.draws import BalancedDraws
from resources.train.tiles import TileAugmentation, TileDataset


@dataclass(frozen=True)
class LoopPlan(DetectorDesign):
    """The `detector` part of a system's YAML: the design as in model.yaml, and the training."""

    training: LoopRecipe


def run(argv, description, network, losses):
    """Parse the arguments and train.

    Args:
        argv: list of str, or None.
        description: of the script.
        network: the name in `midog.engine.detector.NETWORKS` that the script trains.
        losses: by the name that the recipe gives, see `DetectionLoop`.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="of the network, over the recipe's"
    )
    arguments = parser.parse_args(argv)
    values, plan = read_plan(arguments.system, LoopPlan)
    plan = replace(plan, options=plan.options | read_options(arguments.options, plan.options))
    if plan.network != network:
        raise UserError(f"{arguments.system}: its detector is {plan.network}; choose a system of {network}")
    recipe = plan.training
    if recipe.loss not in losses:
        raise UserError(f"{arguments.system}: loss {recipe.loss!r} is unknown; known: {', '.join(losses)}")
    if recipe.batch % recipe.accumulate:
        raise UserError(f"{arguments.system}: batch {recipe.batch} does not fall into {recipe.accumulate} forwards")
    if arguments.seed is not None:
        plan = replace(plan, training=replace(recipe, seed=arguments.seed))
        recipe = plan.training
    seed_everything(recipe.seed, "start")
    try:
        made = NETWORKS[plan.network](**plan.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{arguments.system}: {network} refuses its options ({error}); mend them") from None
    fields, held_out, crops, groups = read_training_data(arguments)
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"plan": asdict(plan)})
    tiles, validation = (
        TileDataset(*each, recipe.seed)
        for each in (
            (fields, crops, recipe.tile, 0, BalancedDraws(fields, *groups), recipe.augmentation),
            (held_out, crops[:0], recipe.tile, 0, BalancedDraws(held_out), TileAugmentation()),
        )
    )
    device = choose_device(arguments.device)
    best = DetectionLoop(made, losses[recipe.loss], recipe, tiles, validation, arguments.out, device).run()
    folder = arguments.out / "model" / values["system"]
    export_detector(folder, values, plan, best, names_of(arguments), held_out, device)


def read_options(given, known):
    """NAME=VALUE strings as a mapping; UserError for an unknown name or what is no value in YAML."""
    changed = dict(each.split("=", 1) for each in given if "=" in each)
    try:
        values = {name: yaml.safe_load(value) for name, value in changed.items()}
    except yaml.YAMLError:
        values = None
    if values is None or set(values) - set(known) or len(values) < len(given):
        raise UserError(f"--options {' '.join(given)}: NAME=VALUE of {', '.join(known)} expected")
    return values
