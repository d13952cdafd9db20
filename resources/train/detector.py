"""Train Track 1's detector: tiles from labelled fields, Ultralytics' trainer, an export that inference.py loads.

    python resources/train/detector.py --data DIR[:CASE,CASE] ... --crops DIR ... --validation DIR[:CASE] ...
        --system NAME --out DIR

The recipe is `training.detector` of resources/systems/NAME.yaml. OUT/model/NAME/
is the export: a system of the detector alone.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
FINISHED = "finished"
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from msgspec import Meta  # noqa: E402

from midog.engine.weights import choose_device  # noqa: E402
from midog.errors import exit_code  # noqa: E402
from midog.system import NotNegative, TileSide  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.data.fields import add_mined, read_fields  # noqa: E402
from resources.train.common import (  # noqa: E402
    Count,
    Decay,
    Plan,
    Rate,
    Seed,
    Strict,
    data_sources,
    prepare_out,
    read_plan,
)
from resources.train.detector_export import export_detector  # noqa: E402
from resources.train.draws import Share, ShareDraws  # noqa: E402
from resources.train.tiles import TileAugmentation, TileDataset  # noqa: E402


class DetectorRecipe(Strict, frozen=True):
    """How a detector is trained.

    Attributes:
        seed: of the weights and of every tile.
        tile: px of a training tile's side.
        epochs, tiles_an_epoch, batch: tiles are drawn, so an epoch is as long as one says.
        learning_rate, final_learning_rate, weight_decay: AdamW, a cosine from the first to the second.
        warmup_epochs: linear rise before.
        patience: stop after so many epochs without a better validation.
        weight_average: decay a step of the averaged weights; 0 is Ultralytics' own, .9999 (1 - e^(-step / 2000)), which
            in a run of some thousand steps hardly averages.
        half_precision: train in bfloat16.
        shares: of what the tiles are drawn around, see `TileDataset`.
        augmentation: see `TileAugmentation`.
    """

    seed: Seed
    tile: TileSide
    epochs: Count
    tiles_an_epoch: Count
    batch: Count
    learning_rate: Rate
    final_learning_rate: Rate
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    patience: Count
    weight_average: Decay
    half_precision: bool
    shares: Annotated[dict[Share, NotNegative], Meta(min_length=1)]
    augmentation: TileAugmentation

    def __post_init__(self) -> None:
        if self.tiles_an_epoch < self.batch:
            raise ValueError(f"tiles_an_epoch is {self.tiles_an_epoch}, at least one batch expected")


def read_detector_plan(name: str) -> Plan[DetectorRecipe]:
    """resources/systems/NAME.yaml (or a path), to be trained by Ultralytics' trainer."""
    return read_plan(name, 1, "detector", DetectorRecipe, "yolo11")


DATA_ARGUMENTS = ("data", "mined", "crops", "validation")


def add_data_arguments(parser):
    """What the trainings of both stages take."""
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE,CASE]", help="labelled fields")
    parser.add_argument("--mined", nargs="*", default=[], metavar="FILE", help="look-alikes that mine.py found in them")
    parser.add_argument("--crops", nargs="*", default=[], metavar="DIR", help="crops with a figure in the middle")
    parser.add_argument("--validation", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--system", required=True, metavar="NAME", help="a file of resources/systems, or a path")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="checkpoints, curves, export")
    parser.add_argument("--resume", action="store_true", help="go on where OUT was left")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def read_training_data(arguments):
    """What `add_data_arguments` names, said in a line.

    Returns:
        training fields with what was mined, validation fields, crops uint8 (M, 128, 128, 3) and the set and the case
        of each, two sequences of M.
    """
    fields, validation = add_mined(read_fields(arguments.data), arguments.mined), read_fields(arguments.validation)
    crops, groups = np.zeros((0, 128, 128, 3), np.uint8), ((), ())
    if arguments.crops:
        read = read_crops(arguments.crops)
        crops = np.ascontiguousarray(read.images.permute(0, 2, 3, 1).numpy())
        groups = [file.split("/")[0] for file in read.files], read.cases
    learnt, held_out = (sum(len(each.figures) for each in group) for group in (fields, validation))
    print(
        f"training fields {len(fields)} with {learnt} mitotic figures and "
        f"{sum(len(each.look_alikes) for each in fields)} look-alikes, crops {len(crops)}; "
        f"validation fields {len(validation)} with {held_out} mitotic figures",
        flush=True,
    )
    return fields, validation, crops, groups


def sources_of(arguments):
    """What a run learns from: `midog.system.DataSource`s."""
    return data_sources(arguments.data, arguments.mined, arguments.crops)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_data_arguments(parser)
    return parser.parse_args(argv)


def overrides(plan, arguments, device):
    """The recipe in Ultralytics' words."""
    recipe = plan.training
    settings = {
        "model": f"yolo11{plan.system.detector.options['scale']}.yaml",
        "data": "tiles",
        "task": "detect",
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "nbs": recipe.batch,
        "imgsz": recipe.tile,
        "optimizer": "AdamW",
        "lr0": recipe.learning_rate,
        "lrf": recipe.final_learning_rate / recipe.learning_rate,
        "cos_lr": True,
        "momentum": 0.9,
        "warmup_momentum": 0.9,
        "warmup_bias_lr": 0.0,
        "weight_decay": recipe.weight_decay,
        "warmup_epochs": recipe.warmup_epochs,
        "patience": recipe.patience,
        "seed": recipe.seed if arguments.seed is None else arguments.seed,
        "amp": False,  # the model sets its own precision
        "close_mosaic": 0,
        "pretrained": False,
        "deterministic": False,
        "save_dir": str(arguments.out.resolve()),
        "exist_ok": True,
        "device": "0" if device.type == "cuda" else "cpu",
        "workers": 8,
        "plots": False,
    }
    last = arguments.out / "weights" / "last.pt"
    if arguments.resume and last.exists():
        settings["resume"] = str(last)
    return settings


def train(arguments):
    plan = read_detector_plan(arguments.system)
    recipe = plan.training
    device = choose_device(arguments.device)
    fields, validation, crops, _ = read_training_data(arguments)
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"plan": plan.as_yaml(), "seed": arguments.seed})
    os.environ["YOLO_VERBOSE"] = "False"
    os.environ.setdefault("YOLO_CONFIG_DIR", str(arguments.out.resolve() / "ultralytics"))
    from resources.train.yolo_trainer import YOLO11Trainer

    settings = overrides(plan, arguments, device)
    draws = ShareDraws(fields, len(crops), recipe.shares)
    dataset = TileDataset(
        fields, crops, recipe.tile, recipe.tiles_an_epoch, draws, recipe.augmentation, settings["seed"]
    )
    trainer = YOLO11Trainer(plan, dataset, validation, settings)
    if not (arguments.out / FINISHED).exists():
        if not trainer.is_over():
            trainer.train()
        (arguments.out / FINISHED).touch()
    folder, states = arguments.out / "model" / plan.system.system, [trainer.best_network().state_dict()]
    export_detector(folder, plan, states, sources_of(arguments), validation, device)


def main(argv=None):
    return exit_code(train, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
