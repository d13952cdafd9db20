"""Cross-validation of Track 2: each fold trained, and its crops judged by the network that has not seen them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from midog.calibration import Calibration
from midog.engine.torch_engine import load_network
from midog.errors import UserError
from midog.evaluation.held_out import read_held_out
from midog.evaluation.operating_point import carried_over, domain_errors, domain_figures, fit_calibration
from midog.models import CLASSIFIERS
from midog.system import DomainErrors
from resources.data.crops import Crops
from resources.train.kit.export import save_weights
from resources.train.kit.loop import Loop
from resources.train.kit.recipes import Plan
from resources.train.kit.run import Processes, StateDict
from resources.train.kit.subtypes import AtypicalRecipe, AtypicalTask, network_options, predict, subclass_names


def folds_of(text: str | None, count: int) -> list[int]:
    """The folds that --folds names; all without it."""
    if text is None:
        return list(range(count))
    try:
        folds = sorted({int(number) for number in text.split(",")})
        if not set(folds) <= set(range(count)):
            raise ValueError
    except ValueError:
        raise UserError(f"--folds {text}: numbers from 0 to {count - 1} expected, as 0,1") from None
    return folds


def train_fold(
    plan: Plan[AtypicalRecipe],
    crops: Crops,
    numbers: NDArray[np.int64],
    fold: int,
    start: StateDict | None,
    folder: Path,
    device: torch.device,
    processes: Processes,
    micro_batch: int,
) -> None:
    """Train one fold unless its weights are there."""
    if not (folder / "weights.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        task = AtypicalTask(plan.classifier, plan.training, crops, numbers, fold, start, device)
        states = Loop(task, plan.training, folder, device, processes, f"fold {fold}", micro_batch).run()
        if processes.is_first:
            save_weights(states[0], folder / "weights.safetensors")
            (folder / "checkpoint.pt").unlink()
    processes.wait()


def predict_held_out(
    plan: Plan[AtypicalRecipe], crops: Crops, numbers: NDArray[np.int64], fold: int, folder: Path, device: torch.device
) -> None:
    """Write held_out.csv: what the fold's exported weights say of its crops, with one view and with all."""
    if (folder / "held_out.csv").exists():
        return
    part = plan.classifier
    options = network_options(part, len(subclass_names(crops, plan.training)))
    network = load_network(CLASSIFIERS, part.network, options, folder / "weights.safetensors").to(device)
    rows = np.flatnonzero(numbers == fold)
    columns: dict[str, Any] = {"file": crops.files[rows], "case": crops.cases[rows], "domain": crops.domains[rows]}
    columns |= {"fold": fold, "label": crops.labels[rows].numpy()}
    columns["one_view"] = predict(network, part, 1, crops, rows, device)
    columns["raw"] = predict(network, part, part.views, crops, rows, device)
    pd.DataFrame(columns).to_csv(folder / "held_out.csv", index=False)


def operating_point(
    out: Path, folds: Sequence[int], recipe: AtypicalRecipe
) -> tuple[Calibration, tuple[DomainErrors, ...]]:
    """The calibration of every network, and how they err on each domain at one that was chosen without it.

    Args:
        out: of the training, with fold<number>/held_out.csv.
        folds: their numbers.
        recipe: what .5 becomes; without `calibrate` it stays where it is.
    """
    table = read_held_out(out, folds)
    if not recipe.calibrate:
        return Calibration(), domain_errors(domain_figures(table.assign(probability=table.raw)))
    rule = recipe.operating_point
    return fit_calibration(table, rule), domain_errors(carried_over([table], [rule]))
