"""From labelled fields to a system: what the scripts of all detectors share that the plain loop trains."""

import argparse
from dataclasses import asdict, dataclass, replace

import numpy as np
import yaml

from midog.classify import choose_device
from midog.detect import NETWORKS
from midog.errors import UserError
from midog.system import DetectorDesign
from resources.data.crops import read_crops
from resources.data.fields import add_mined, read_fields
from resources.train.common import prepare_out, seed_everything
from resources.train.detection_loop import DetectionLoop, LoopRecipe
from resources.train.detector import DATA_ARGUMENTS, add_data_arguments, names_of, read_plan
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
        network: the name in `midog.detect.NETWORKS` that the script trains.
        losses: by the name that the recipe gives, see `DetectionLoop`.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    add_data_arguments(parser)
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="of the network, over the recipe's"
    )
    arguments = parser.parse_args(argv)
    values, plan = read_plan(arguments.system, LoopPlan)
    changed = dict(each.split("=", 1) for each in arguments.options if "=" in each)
    unknown = set(changed) - set(plan.options)
    if unknown or len(changed) < len(arguments.options):
        raise UserError(f"--options {' '.join(arguments.options)}: NAME=VALUE of {', '.join(plan.options)} expected")
    plan = replace(plan, options=plan.options | {name: yaml.safe_load(value) for name, value in changed.items()})
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
    fields, held_out = add_mined(read_fields(arguments.data), arguments.mined), read_fields(arguments.validation)
    crops, sets, cases = np.zeros((0, 128, 128, 3), np.uint8), [], []
    if arguments.crops:
        read = read_crops(arguments.crops)
        crops = np.ascontiguousarray(read.images.permute(0, 2, 3, 1).numpy())
        sets, cases = [file.split("/")[0] for file in read.files], read.cases
    print(
        f"training fields {len(fields)} with {sum(len(each.figures) for each in fields)} mitotic figures and "
        f"{sum(len(each.look_alikes) for each in fields)} look-alikes, crops {len(crops)}; validation fields "
        f"{len(held_out)} with {sum(len(each.figures) for each in held_out)} mitotic figures",
        flush=True,
    )
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"plan": asdict(plan)})
    seed_everything(recipe.seed, "start")
    made = NETWORKS[plan.network](**plan.options)
    tiles, validation = (
        TileDataset(*each, recipe.seed)
        for each in (
            (fields, crops, recipe.tile, 0, BalancedDraws(fields, sets, cases), recipe.augmentation),
            (held_out, crops[:0], recipe.tile, 0, BalancedDraws(held_out), TileAugmentation()),
        )
    )
    device = choose_device(arguments.device)
    best = DetectionLoop(made, losses[recipe.loss], recipe, tiles, validation, arguments.out, device).run()
    folder = arguments.out / "model" / values["system"]
    export_detector(folder, values, plan, best, names_of(arguments), held_out, device)
