"""What `evaluate` and `tune` are given: a truth (a file, or folders of labelled data) and predictions (or a system)."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from midog.calibration import Calibration
from midog.errors import UserError
from midog.evaluation.cases import (
    case_of,
    given_spacings,
    read_abouts,
    read_cases,
    read_ground_truth,
    training_cases,
)
from midog.evaluation.held_out import folds_in, read_held_out
from midog.evaluation.labelled import Labelled, areas_mm2, read_labelled, results_of
from midog.evaluation.metrics import Case, StackCase
from midog.files import sha256_of
from midog.run import load
from midog.system import System, find_folder, model_folder, read_system

logger = logging.getLogger(__name__)

STRATUM = {1: "tumor", 2: "domain"}  # by track, how metrics.json starts a tumour domain's name


@dataclass(frozen=True)
class Inputs:
    """Cases, and what is known of the data they come from.

    Attributes:
        cases: `DetectionCase`s or `StackCase`s.
        remarks: lines to warn with.
        source: what was compared with what, for a title.
        names: of strata ("tumor_0"), what they are called beside their number.
        areas: mm2 by image (Track 1 with --data), else empty.
        spacings: um/px by image, where it is not the file's.
        trained: strata that hold images the system was trained on, "overall" among them.
    """

    cases: list[Case]
    remarks: list[str]
    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    areas: Mapping[str, float] = field(default_factory=dict)
    spacings: Mapping[str, float | None] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()


def add_arguments(parser: ArgumentParser) -> None:
    """Truth and predictions on the command line."""
    parser.add_argument("--track", type=int, choices=(1, 2), required=True, help="1: detection, 2: atypical or normal")
    truth = parser.add_argument_group("the truth, one of these").add_mutually_exclusive_group(required=True)
    truth.add_argument(
        "--data",
        nargs="+",
        metavar="DIR[:CASE,CASE]",
        help="folders of labelled fields (Track 1: images.csv and figures.csv) or crops (Track 2: labels.csv "
        "and crops/), as python -m resources.data.prepare makes them. DIR takes all, DIR:CASE,CASE only these cases, "
        "DIR:-CASE,CASE all but these, DIR:split=test by another column of the table; * stands for any text",
    )
    truth.add_argument("--ground-truth", type=Path, metavar="FILE", help="a JSON file in the organisers' format")
    truth.add_argument(
        "--folds",
        type=Path,
        metavar="OUT",
        help="the --out of a training of Track 2, which has the predictions, too: each crop is judged by the network "
        "of the fold that held it out",
    )
    found = parser.add_argument_group("what is compared with it; without --predictions the system runs on --data")
    found.add_argument(
        "--predictions",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders that midog predict wrote, or of the platform's jobs (predictions.json); each image in one",
    )
    found.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the system runs (%(default)s)"
    )


def read_inputs(arguments: Namespace, model: str | Path | None, system: str | None) -> Inputs:
    """Read truth and predictions, or predict.

    Args:
        arguments: track, ground_truth, data, folds, predictions and device, of `add_arguments`.
        model: folder of the systems' folders, or None for the usual one.
        system: a system's name, or None for the track's default.

    Raises:
        UserError: options that do not fit together; see `read_cases`, `read_labelled`, `midog.run.load`.
    """
    track, predictions = arguments.track, arguments.predictions or []
    if arguments.ground_truth:
        if not predictions:
            raise UserError(f"{arguments.ground_truth}: nothing to compare with it; give --predictions, too")
        truths = read_ground_truth(arguments.ground_truth, track)
        cases, remarks = read_cases(track, truths, *predictions)
        source = f"{_listed(predictions)} against {arguments.ground_truth}"
        return Inputs(cases, remarks, source, spacings=given_spacings(track, truths, *predictions))
    labelled = read_labelled(track, arguments.data)
    if predictions:
        cases, remarks = read_cases(track, labelled.truths, *predictions)
        systems = _systems(track, labelled, predictions, model, system)
        made_by = _listed(predictions)
    else:
        runner = load(system, track, model, arguments.device)
        found = results_of(runner, labelled)
        cases = [case_of(track, image, labelled.truths[image], result) for image, result in found]
        remarks, systems = [], dict.fromkeys(labelled.truths, runner.system)
        made_by = str(runner.system)
    said, trained = _trained(track, labelled, systems)
    answered = {case.image for case in cases}
    fields = [item for item in labelled.items if item.image in answered] if track == 1 else []
    return Inputs(
        cases,
        remarks + said,
        f"{made_by} against {_listed(arguments.data)}",
        {f"{STRATUM[track]}_{number}": name for number, name in enumerate(labelled.domains)},
        areas_mm2(fields),
        {item.image: item.um_per_px for item in fields},
        trained,
    )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _systems(
    track: int, labelled: Labelled, predictions: Sequence[Path], model: str | Path | None, system: str | None
) -> dict[str, System]:
    """By image the system that made its prediction, where predict's note says so and it is still there."""
    folder = model_folder(model)
    if system:
        return dict.fromkeys(labelled.truths, read_system(find_folder(folder, system, track) / "model.yaml"))
    systems = {}
    known: dict[str, System | None] = {}
    for image, about in read_abouts(track, labelled.truths, *predictions).items():
        if about.system not in known:
            path = folder / about.system / "model.yaml"
            known[about.system] = read_system(path) if path.exists() else None
        found = known[about.system]
        if found and found.version == about.version:
            systems[image] = found
    return systems


def _trained(track: int, labelled: Labelled, systems: Mapping[str, System]) -> tuple[list[str], frozenset[str]]:
    """Warnings, and the strata with data that a system was trained on."""
    chosen = [(item, systems[item.image]) for item in labelled.items if item.image in systems]
    by_name = {str(system): system for _, system in chosen}
    said = [
        training_cases(system, [(item.set, item.case) for item, other in chosen if str(other) == name])
        for name, system in by_name.items()
    ]
    strata = {f"{STRATUM[track]}_{item.domain}" for item, system in chosen if system.trained_on(item.set, item.case)}
    return [text for text in said if text], frozenset(strata | {"overall"} if strata else ())


def held_out_cases(out: Path, system: System) -> list[Case]:
    """Each case's crops with the probability that the system's network of their fold gave, calibrated as in the system.

    A single network stands for the mean of all, most of which learned from the crop.

    Args:
        out: of a training of Track 2.
        system: that the training exported.

    Raises:
        UserError: as `read_held_out`; the system has other folds or other weights.
    """
    assert system.classifier is not None
    folds = folds_in(out)
    members = system.classifier.members
    if len(members) != len(folds):
        raise UserError(f"{out}: {len(folds)} folds, {system} has {len(members)} networks; give the system it exported")
    for fold, member in zip(folds, members, strict=True):
        weights = out / f"fold{fold}" / "weights.safetensors"
        if weights.exists() and sha256_of(weights) != member.sha256:
            raise UserError(
                f"{weights}: not the weights that {system} has; give the system that this training exported"
            )
    table = read_held_out(out, folds)
    calibrations: dict[int, Calibration] = dict(zip(folds, (member.calibration for member in members), strict=True))
    probability = np.zeros(len(table))
    for fold in folds:
        mine = (table.fold == fold).to_numpy()
        one = calibrations[fold].apply(table.raw[mine])
        probability[mine] = system.classifier.calibration.apply(one)
    cases: list[Case] = []
    for case, rows in table.groupby(table.case.astype(str)).groups.items():
        scores, labels = probability[rows], table.label[rows].to_numpy().astype(bool)
        cases.append(StackCase(str(case), table.domain[rows].to_numpy(str), labels, scores >= 0.5, scores))
    return cases
