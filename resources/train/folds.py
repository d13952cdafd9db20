"""Train a Track 1 system once for each fold of a split, and predict every fold by the system that never saw it.

    python -m resources.train.folds rtmdet --system NAME --data DIR ... --split FILE.csv --out OUT

Everything behind the training's name is for the training; {fold} in it is the fold's name, so that a second stage finds
its own detector: --detector 'runs/detectors/fold_{fold}/model/rtmdet_tiny'. The split is one of python -m
resources.data.split with --folds or --leave-out.

With --mine SCORE, OUT/mined.csv holds what each fold's detector takes for figures in the tissue, crops too, that it did
not learn from: hard negatives of every fold, none of them found by a network that knows the field's unlabelled figures.

OUT/fold_<name>/ is each training's folder, OUT/out_of_fold/ holds the predictions of all whole images in the folds
(scores before calibration), and OUT/model/NAME/ is one system of all the folds' networks. Threshold and calibration
come from the predictions, and so do honest figures:

    python -m midog tune --track 1 --data DIR ... --predictions OUT/out_of_fold --model OUT/model/NAME
    python -m midog evaluate --track 1 --data DIR ... --predictions OUT/out_of_fold
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from midog.errors import UserError, exit_code
from midog.evaluation.splits import TEST, TRAIN, VALIDATION, read_split
from midog.files import write_file
from resources.data.fields import read_fields
from resources.data.tissue import tissue_of
from resources.train import candidates, centernet, focasnet, rtmdet, torchvision_detector, yolo11
from resources.train.kit.joined import MINED, join_folds, mine_fold, predict_fold

TRAININGS = {
    "candidates": candidates,
    "centernet": centernet,
    "focasnet": focasnet,
    "rtmdet": rtmdet,
    "torchvision_detector": torchvision_detector,
    "yolo11": yolo11,
}


def train(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("training", choices=TRAININGS, help="whose options follow, with {fold} for the fold's name")
    parser.add_argument("--data", nargs="+", action="extend", required=True, metavar="DIR[:CASE,CASE]")
    parser.add_argument("--split", type=Path, required=True, metavar="FILE.csv", help="with a fold for each training")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for all of it")
    parser.add_argument("--system", required=True, metavar="NAME", help="as of the training")
    parser.add_argument("--mine", type=float, metavar="SCORE", help="write OUT/mined.csv, of so much at least")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    known, options = parser.parse_known_args(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("folds: started by torchrun; give the command without it: each fold is trained on all GPUs")
    split = read_split(known.split)
    folds = [name for name in split.names if name not in (TRAIN, VALIDATION, TEST)]
    if len(folds) < 2:
        raise UserError(f"{known.split}: has no folds to train on in turn; make it with --folds or --leave-out")
    folders = [known.out / f"fold_{name.replace('/', '_')}" for name in folds]
    same = ["--system", known.system, "--data", *known.data, "--split", str(known.split), "--device", known.device]
    for fold, folder in zip(folds, folders, strict=True):
        if not list(folder.glob("model/*/model.yaml")):
            own = [option.replace("{fold}", fold) for option in options if option != "--resume"]
            own += ["--resume"] * (folder / "recipe.yaml").exists()
            if _train_on_all_gpus(known.training, [*same, *own, "--fold", fold, "--out", str(folder)], known.device):
                raise UserError(f"{folder}: the training of this fold failed, see above; give the same command again")
        predict_fold(folder, known.data, split, fold, known.out / "out_of_fold", known.device)
        if known.mine is not None:
            mine_fold(folder, known.data, split, fold, known.mine, known.device)
    if known.mine is not None:
        mined = pd.concat([pd.read_csv(folder / MINED) for folder in folders])
        write_file(known.out / MINED, mined.to_csv(index=False))
    join_folds(folders, known.out / "model", tissue_of(read_fields(known.data, split, folds)))


def _train_on_all_gpus(training: str, argv: Sequence[str], device: str) -> int:
    """The exit code of a fold's training; where there are several GPUs, it is a process for each."""
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if gpus < 2:
        return TRAININGS[training].main(argv)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
    return subprocess.run([*launch, "-m", f"resources.train.{training}", *argv]).returncode


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train, argv)


if __name__ == "__main__":
    sys.exit(main())
