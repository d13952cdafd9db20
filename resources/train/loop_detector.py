"""From labelled fields to a system: what the scripts of all detectors share that the plain loop trains."""

import argparse

import yaml

from midog.engine.weights import choose_device
from midog.errors import UserError
from midog.models import DETECTORS, build
from resources.train.common import prepare_out, read_plan, seed_everything
from resources.train.detection_loop import DetectionLoop, LoopRecipe
from resources.train.detector import DATA_ARGUMENTS, add_data_arguments, read_training_data, sources_of
from resources.train.detector_export import export_detector
from resources.train.draws import BalancedDraws
from resources.train.tiles import TileAugmentation, TileDataset


def run(argv, description, network, losses):
    """Parse the arguments and train.

    Args:
        argv: list of str, or None.
        description: of the script.
        network: the name in `midog.models.DETECTORS` that the script trains.
        losses: by the name that the recipe gives, see `DetectionLoop`.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="of the network, over the recipe's"
    )
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.system, 1, "detector", LoopRecipe, network)
    known = plan.system.detector.options
    plan = plan.with_part(options=known | read_options(arguments.options, known))
    part = plan.system.detector
    if arguments.seed is not None:
        plan = plan.with_training(seed=arguments.seed)
    recipe = plan.training
    if recipe.loss not in losses:
        raise UserError(f"{arguments.system}: loss {recipe.loss!r} is unknown; known: {', '.join(losses)}")
    seed_everything(recipe.seed, "start")
    try:
        made = build(DETECTORS, network, part.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{arguments.system}: {network} refuses its options ({error}); mend them") from None
    fields, held_out, crops, groups = read_training_data(arguments)
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"plan": plan.as_yaml()})
    tiles, validation = (
        TileDataset(*each, recipe.seed)
        for each in (
            (fields, crops, recipe.tile, 0, BalancedDraws(fields, *groups), recipe.augmentation),
            (held_out, crops[:0], recipe.tile, 0, BalancedDraws(held_out), TileAugmentation()),
        )
    )
    device = choose_device(arguments.device)
    best = DetectionLoop(made, losses[recipe.loss], recipe, tiles, validation, arguments.out, device).run()
    folder = arguments.out / "model" / plan.system.system
    export_detector(folder, plan, best, sources_of(arguments), held_out, device)


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
