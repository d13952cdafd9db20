"""Train a system of two stages for Track 1 whole, in one command, with everything chosen out of fold.

    python -m resources.train.two_stages --system centernet_two_stages --data DIR ... --crops DIR ... --out OUT

Each step is a command of its own, and what is there already is left as it is: the same command goes on after a kill.

    OUT/split.csv       resources.data.split: folds of --data, and of --crops
    OUT/mining/         resources.train.folds: the detector, for a part of its steps, and the hard negatives it finds
    OUT/detector/       resources.train.folds: the detector, with those
    OUT/second_stage/   resources.train.folds candidates: the classifier, with the hard negatives of both;
                        resources.train.score_weight
    OUT/tuned/          midog tune: threshold and calibration

OUT/second_stage/model/NAME is the system, with the networks of all folds in each stage. OUT/tuned/predictions is what
the networks of each fold say of the images that they never saw, each image under a threshold that others chose:
midog evaluate --predictions OUT/tuned/predictions shows how good that is.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from midog import __main__ as midog
from midog.errors import UserError, exit_code
from midog.files import check_writable
from midog.system import load_system, read_system
from resources.data import split
from resources.train import folds, score_weight
from resources.train.kit.recipes import recipe_path

MINING_STEPS = 0.6  # of the detector's: enough to learn what looks like a figure
MINED_SCORES = ("0.3", "0.15")  # least ones: of what a detector learns from; of what a classifier does, more


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--system", required=True, metavar="NAME", help="a recipe of detector and classifier")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR[:CASE]", help="fields, and tissue without figures"
    )
    parser.add_argument("--crops", nargs="*", default=[], metavar="DIR[:CASE]", help="crops, to learn from alone")
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="networks a stage (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="for all of it")
    return parser.parse_args(argv)


def train(arguments: argparse.Namespace) -> None:
    out = arguments.out
    path = recipe_path(arguments.system, "candidates")
    recipe = read_system(path)
    name = recipe.system
    if recipe.detector is None or recipe.classifier is None:
        raise UserError(f"{path}: one stage; train it with python -m midog train folds")
    check_writable(out)
    if not (out / "split.csv").exists():
        split.write_folds(arguments.data, arguments.crops, arguments.folds, out / "split.csv")
    steps = round(MINING_STEPS * recipe.training["detector"]["steps_an_epoch"])
    common = [
        "--system",
        arguments.system,
        "--data",
        *arguments.data,
        *arguments.crops,
        "--split",
        str(out / "split.csv"),
    ]
    common += [] if arguments.seed is None else ["--seed", str(arguments.seed)]
    mining, detector, second = (out / each for each in ("mining", "detector", "second_stage"))
    first, second_time = (["--mine", score] for score in MINED_SCORES)
    shorter = ["--set", f"training.detector.steps_an_epoch={steps}"]
    _run(folds.main, recipe.detector.network, *common, *first, *shorter, "--out", str(mining))
    mined = ["--mined", str(mining / folds.MINED)]
    _run(folds.main, recipe.detector.network, *common, *second_time, *mined, "--out", str(detector))
    mined.append(str(detector / folds.MINED))
    behind = ["--detector", f"{detector}/fold_{{fold}}/model/{name}"]
    _run(folds.main, "candidates", *common, *mined, *behind, "--out", str(second))
    model = second / "model" / name
    if "tuned" in load_system(model).made.metrics:
        return
    judged = ["--data", *arguments.data]
    both = ["--detector", str(detector / "out_of_fold"), "--two-stages", str(second)]
    _run(score_weight.main, *judged, *both, "--system", name)
    found = ["--predictions", str(second / "weighted")]
    _run(midog.main, "tune", "--track", "1", *judged, *found, "--model", str(model), "--out", str(out / "tuned"))


def _run(main: Callable[[Sequence[str]], int], *arguments: str) -> None:
    if main(arguments):
        raise UserError(f"{main.__module__}: failed, see above; mend it and give the same command again")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
