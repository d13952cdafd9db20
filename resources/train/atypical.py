"""Train Track 2's classifier: folds, out-of-fold figures, an ensemble that inference.py loads.

    python -m resources.train.atypical --system NAME --data DIR [DIR ...] --out DIR

Yamagishi and Hanaoka's entry, arXiv 2508.18831. The recipe is `training.classifier` of resources/systems/NAME.yaml
(convnextv2 is the paper's, efficientnet_lite0 the default, convnextv2_small from scratch); OUT/model/NAME/ is the
export. More than one GPU: `torchrun --nproc_per_node 4 -m resources.train.atypical ...`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from midog.engine.torch_engine import choose_device
from midog.errors import exit_code
from midog.evaluation.held_out import RAW, evaluate_held_out
from midog.evaluation.splits import read_split
from midog.system import DataSource, Made
from resources.data.crops import read_crops
from resources.train.kit.arguments import parser_of, tables_sha256
from resources.train.kit.export import export_folds
from resources.train.kit.out_of_fold import folds_of, operating_point, predict_held_out, train_fold
from resources.train.kit.recipes import read_plan
from resources.train.kit.run import commit, given_sha256, join_processes, prepare_out
from resources.train.kit.subtypes import AtypicalRecipe, split_folds, start_of, subclass_names


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__ or "", "atypical")
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with labels.csv and crops/")
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE.csv",
        help="of python -m resources.data.split: its folds but 'test', numbered from 0, instead of the recipe's",
    )
    parser.add_argument("--folds", metavar="K,K", help="numbers of those to train and export (all)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N crops only, to try things out")
    return parser.parse_args(argv)


def train(argv: Sequence[str] | None) -> None:
    arguments = parse_arguments(argv)
    plan = read_plan(arguments.system, "atypical", AtypicalRecipe, arguments.changes, arguments.seed)
    recipe, out = plan.training, arguments.out
    split = read_split(arguments.split) if arguments.split else None
    processes, device = join_processes(choose_device(arguments.device))
    crops = read_crops(arguments.data, arguments.limit)
    names = subclass_names(crops, recipe)
    start, pretrained = start_of(plan.classifier, recipe, len(names), arguments.pretrained)
    numbers = split_folds(crops, recipe, split)
    folds = folds_of(arguments.folds, int(numbers.max()) + 1)
    if processes.is_first:
        record = {"data": arguments.data, "tables": {each: tables_sha256(Path(each)) for each in arguments.data}}
        record |= {"limit": arguments.limit, "folds": folds, "pretrained": msgspec.to_builtins(pretrained)}
        record |= {"split": given_sha256(arguments.split, "--split") if split else None}
        prepare_out(out, arguments.resume, record | {"plan": plan.as_yaml()})
    processes.wait()
    for fold in folds:
        train_fold(plan, crops, numbers, fold, start, out / f"fold{fold}", device, processes, arguments.micro_batch)
    processes.end()
    if not processes.is_first:
        return
    for fold in folds:
        predict_held_out(plan, crops, numbers, fold, out / f"fold{fold}", device)
    metrics = evaluate_held_out(out, folds, recipe.operating_point)
    calibration, domains = operating_point(out, folds, recipe)
    export_folds(
        out / "model" / plan.system.system,
        plan,
        weights={fold: out / f"fold{fold}" / "weights.safetensors" for fold in folds},
        options=plan.classifier.options | {"num_classes": 1 + len(names)},
        recipe=msgspec.to_builtins(recipe) | {"subclasses": names, "crops": len(crops)},
        calibration=calibration,
        made=Made(
            code=commit(),
            data=tuple(DataSource(set=name) for name in crops.sets),
            pretrained={"classifier": pretrained} if pretrained else {},
            metrics={"out_of_fold": metrics["overall"] if recipe.calibrate else metrics["raw"][RAW]},
            domains=domains,
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train, argv)


if __name__ == "__main__":
    sys.exit(main())
