"""From trained weights to a system that inference.py loads."""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from midog.calibration import Calibration, shift_to_half
from midog.engine.torch_engine import TorchEngine, load_network
from midog.engine.two_stages import SystemDetector
from midog.evaluation.metrics import MATCH_UM, detection_curve
from midog.evaluation.splits import Split
from midog.evaluation.tables import holds_crops, read_crop_table, read_tables, select_images, split_selection
from midog.files import sha256_of, write_file, write_yaml
from midog.models import CLASSIFIERS, classifier_options
from midog.system import (
    ClassifierWeights,
    DataSource,
    Made,
    System,
    Weights,
    as_yaml,
    load_system,
)
from resources.data.fields import Field
from resources.train.kit.recipes import Plan
from resources.train.kit.run import StateDict, given_sha256

logger = logging.getLogger(__name__)


def save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a state dict as fp16 safetensors, whole or not at all; the file's sha256."""
    from safetensors.torch import save

    stored = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    write_file(path, save(stored))
    path.chmod(0o644)
    return sha256_of(path)


def write_model(folder: Path, system: System) -> System:
    """Write model.yaml, whole or not at all, and prove that it loads; the system as loaded."""
    write_yaml(folder / "model.yaml", as_yaml(system))
    return load_system(folder)


def data_sources(
    data: Iterable[str],
    mined: Iterable[str] = (),
    crops: Iterable[str] = (),
    split: Split | None = None,
    folds: Collection[str] = (),
) -> tuple[DataSource, ...]:
    """What a run learns from, as model.yaml tells it.

    Args:
        data: strings as `resources.data.fields.read_fields` takes them.
        mined: paths of lists of hard negatives; each set tells the sha256 of those that lie in it.
        crops: folders of crops.
        split, folds: only the cases of these folds of a split.
    """
    lists: dict[str, list[str]] = {}
    for path in map(Path, mined):
        for name in set(pd.read_csv(path, dtype={"set": str}).set):
            lists.setdefault(name, []).append(given_sha256(path, "--mined"))
    sources = [_source_of(selection, split, folds) for selection in (*data, *crops)]
    return tuple(replace(each, mined_sha256=",".join(sorted(lists.get(each.set, [])))) for each in sources)


def _source_of(selection: str, split: Split | None, folds: Collection[str]) -> DataSource:
    folder, cases = split_selection(selection)
    name = folder.resolve().name
    if "=" in cases or split:  # chosen by another column or a split: told by the cases that this means
        table = read_crop_table(folder, all_labels=True) if holds_crops(folder) else read_tables(folder)[0]
        table = select_images(table, cases, selection)
        table = split.choose(table, name, folds) if split else table
        return DataSource(set=name, cases=tuple(sorted(set(table.case.astype(str)))))
    patterns = tuple(cases.removeprefix("-").split(",")) if cases else ()
    return DataSource(set=name, without=patterns) if cases.startswith("-") else DataSource(set=name, cases=patterns)


def export_detector(
    folder: Path,
    plan: Plan[Any],
    states: Sequence[StateDict],
    made: Made,
    validation: Sequence[Field],
    device: torch.device,
) -> None:
    """Write FOLDER/model.yaml and the weights of a system of the detector alone, .5 its best threshold if it says so.

    Args:
        folder: `<out>/model/<system>`.
        plan: of the detector.
        states: a state dict for each member.
        made: where the weights come from.
        validation: fields that choose the threshold.
        device: of the run over them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ["detector.safetensors"]
    if len(states) > 1:
        names = [f"member{number}.safetensors" for number in range(len(states))]
    members = tuple(
        Weights(weights=name, sha256=save_weights(state, folder / name))
        for name, state in zip(names, states, strict=True)
    )
    system = replace(
        plan.system,
        detector=replace(plan.detector, members=members),
        classifier=None,
        training={"detector": msgspec.to_builtins(plan.training)},
        made=made,
    )
    write_model(folder, system)
    curve = set_operating_point(folder, validation, device, plan.training.calibrate)
    said = ", ".join(f"{name} {value:.4f}" for name, value in curve.items())
    logger.info("validation %s; exported %s", said, folder)


def curve_on(
    fields: Sequence[Field], centres: Sequence[NDArray[np.floating]], scores: Sequence[NDArray[np.floating]]
) -> dict[str, float]:
    """`detection_curve` of what was found in fields: for each its centres (K, 2) px, and scores (K,)."""
    radii = [MATCH_UM / field.um_per_px[0] for field in fields]
    return detection_curve([field.figures for field in fields], radii, centres, scores)


def set_operating_point(
    folder: Path, fields: Sequence[Field], device: torch.device, calibrate: bool = True
) -> dict[str, float]:
    """Run a Track 1 system over labelled fields, note its figures in model.yaml, and put its best threshold at .5.

    Args:
        folder: of a system of one stage, or of two with one classifier.
        fields: labelled.
        device: of the run.
        calibrate: without it .5 stays where it is.

    Returns:
        `detection_curve` of the probabilities before.
    """
    system = load_system(folder)
    detector = SystemDetector(system, TorchEngine(device))
    found = [detector(field) for field in tqdm(fields, "validation", disable=None, leave=False)]
    curve = curve_on(fields, [each.centres for each in found], [each.probabilities for each in found])
    shift = Calibration(shift=shift_to_half(curve["threshold"])) if calibrate else Calibration()
    changed: dict[str, Any]
    if system.classifier:
        (member,) = system.classifier.members
        member = replace(member, calibration=member.calibration.then(shift))
        changed = {"classifier": replace(system.classifier, members=(member,))}
    else:
        assert system.detector is not None
        calibration = system.detector.calibration.then(shift)
        changed = {"detector": replace(system.detector, calibration=calibration)}
    metrics = system.made.metrics | {f"validation_{name}": round(value, 4) for name, value in curve.items()}
    write_model(folder, replace(system, made=replace(system.made, metrics=metrics), **changed))
    return curve


def export_two_stages(
    folder: Path,
    plan: Plan[Any],
    stage1: System,
    state: StateDict,
    made: Made,
    judge: Callable[[nn.Module], tuple[float, float]],
) -> None:
    """Write FOLDER/model.yaml and the weights of a detector as it is and a classifier behind it.

    .5 is the best threshold if the plan says so.

    Args:
        folder: `<out>/model/<system>`.
        plan: of the classifier.
        stage1: the system whose detector proposes.
        state: of the classifier.
        made: where the classifier comes from.
        judge: a network -> its best F1 on validation, and the threshold.
    """
    part, detector = plan.classifier, stage1.detector
    assert detector is not None
    folder.mkdir(parents=True, exist_ok=True)
    for each in detector.members:
        shutil.copyfile(stage1.path_of(each), folder / each.weights)
    sha256 = save_weights(state, folder / "classifier.safetensors")
    options = classifier_options(part.network, part.options, part.input_px)
    network = load_network(CLASSIFIERS, part.network, options, folder / "classifier.safetensors")
    f1, threshold = judge(network)
    calibration = Calibration(shift=shift_to_half(threshold)) if plan.training.calibrate else Calibration()
    member = ClassifierWeights(weights="classifier.safetensors", sha256=sha256, calibration=calibration)
    system = replace(
        plan.system,
        detector=replace(
            detector,
            score_threshold=plan.detector.score_threshold,
            members=tuple(replace(each, shared="") for each in detector.members),
        ),
        classifier=replace(part, members=(member,)),
        training=stage1.training | {"classifier": msgspec.to_builtins(plan.training)},
        made=Made(
            code=made.code,
            data=tuple(dict.fromkeys((*stage1.made.data, *made.data))),
            pretrained=stage1.made.pretrained | made.pretrained,
            metrics=stage1.made.metrics | {"validation_f1_two_stages": round(f1, 4)},
        ),
    )
    write_model(folder, system)
    logger.info("validation F1 %.4f at %.3f before calibration; exported %s", f1, threshold, folder)


def export_folds(
    folder: Path,
    plan: Plan[Any],
    weights: Mapping[int, Path],
    options: Mapping[str, Any],
    recipe: Mapping[str, Any],
    calibration: Calibration,
    made: Made,
) -> None:
    """Write FOLDER/model.yaml and the weights of a Track 2 ensemble, one network a fold.

    Every fold's network has the calibration, which was fitted on single networks, before the mean.

    Args:
        folder: `<out>/model/<system>`.
        plan: of the classifier.
        weights: by fold, the files of `save_weights`.
        options: of the networks.
        recipe: what they were trained with.
        calibration: of each.
        made: where they come from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for fold, path in weights.items():
        target = folder / f"fold{fold}.safetensors"
        shutil.copyfile(path, target)
        sha256 = sha256_of(target)
        members.append(ClassifierWeights(weights=target.name, sha256=sha256, calibration=calibration))
    classifier = replace(plan.classifier, options=dict(options), members=tuple(members))
    write_model(folder, replace(plan.system, classifier=classifier, training={"classifier": dict(recipe)}, made=made))
    logger.info("exported %s: run it with inference.py --model %s", folder, folder.parent)
