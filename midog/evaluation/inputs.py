"""What `evaluate` and `tune` are given: a truth (a file, or folders of labelled data) and predictions (or a system)."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from midog.arguments import add_device
from midog.calibration import Calibration
from midog.errors import UserError
from midog.evaluation.cases import (
    case_of,
    counted_once,
    given_spacings,
    read_abouts,
    read_cases,
    read_ground_truth,
    training_cases,
)
from midog.evaluation.held_out import folds_in, read_held_out
from midog.evaluation.labelled import Extent, Labelled, extents, read_labelled, results_of, scanned_twice
from midog.evaluation.metrics import Case, DetectionCase, StackCase
from midog.evaluation.splits import Split, read_split
from midog.files import sha256_of
from midog.run import load
from midog.system import System, find_folder, model_folder, read_system

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Cases, and what is known of the data they come from.

    Attributes:
        cases: `DetectionCase`s or `StackCase`s.
        remarks: lines to warn with.
        source: what was compared with what, for a title.
        notes: lines to show below the figures.
        names: of Track 2's strata ("domain_0"), what they are called beside their number.
        sets, scanners: by image (Track 1 with --data), else empty; so are areas.
        areas: mm2 by image, each place of the tissue once.
        spacings: um/px by image, where it is not the file's.
        confidences: by image and place (x, y, z) in mm, the readers' confidence in a label, where the tables tell it.
        trained: images (stacks) that the system was trained on.
    """

    cases: list[Case]
    remarks: list[str]
    source: str
    notes: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    scanners: Mapping[str, str] = field(default_factory=dict)
    areas: Mapping[str, float] = field(default_factory=dict)
    spacings: Mapping[str, float | None] = field(default_factory=dict)
    confidences: Mapping[str, Mapping[tuple[float, ...], float]] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()


def add_arguments(parser: ArgumentParser) -> None:
    """Truth and predictions on the command line."""
    parser.add_argument("--track", type=int, choices=(1, 2), required=True, help="1: detection, 2: atypical or normal")
    truth = parser.add_argument_group("the truth, one of these").add_mutually_exclusive_group(required=True)
    truth.add_argument(
        "--data",
        nargs="+",
        metavar="DIR[:CASE,CASE]",
        help="folders of labelled regions (Track 1: images.csv and figures.csv) or crops (Track 2: labels.csv "
        "and crops/), as python -m resources.data.prepare makes them. DIR takes all, DIR:CASE,CASE only these cases, "
        "DIR:-CASE,CASE all but these, DIR:split=test by another column of the table; * stands for any text",
    )
    truth.add_argument("--ground-truth", type=Path, metavar="FILE", help="a JSON file in the organisers' format")
    truth.add_argument(
        "--folds",
        nargs="+",
        type=Path,
        metavar="OUT",
        help="the --out of a training of Track 2, which has the predictions, too: each crop is judged by the network "
        "of the fold that held it out. Of several trainings with the same crops evaluate compares each and their mean",
    )
    add_split_arguments(parser)
    found = parser.add_argument_group("what is compared with it; without --predictions the system runs on --data")
    found.add_argument(
        "--predictions",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders that midog predict wrote, or of the platform's jobs (predictions.json); each image in one",
    )
    add_device(found)


def add_split_arguments(parser: ArgumentParser) -> None:
    """What of the labelled folders is taken."""
    chosen = parser.add_argument_group("only some folds of a split")
    chosen.add_argument("--split", type=Path, metavar="FILE", help="a CSV file of cases and their folds")
    chosen.add_argument(
        "--fold",
        metavar="NAME[,NAME]",
        help="the folds of --split that are taken: test, validation, a number, or what is left out",
    )


def given_folds(split: Path | None, fold: str | None) -> tuple[Split | None, list[str]]:
    """--split and --fold as they are read; None and no fold without them.

    Raises:
        UserError: one without the other; the file is no split.
    """
    if split is None and fold is None:
        return None, []
    if split is None:
        raise UserError(f"--fold {fold}: of which split? give --split FILE, too")
    read = read_split(split)
    if fold is None:
        raise UserError(f"{split}: give --fold, too; known: {', '.join(read.names)}")
    return read, [name.strip() for name in fold.split(",")]


def read_inputs(arguments: Namespace, model: str | Path | None, system: str | None) -> Inputs:
    """Read truth and predictions, or predict.

    Args:
        arguments: of `add_arguments`.
        model: folder of the systems' folders, or None for the usual one.
        system: a system's name, or None for the track's default.

    Raises:
        UserError: options that do not fit together; see `read_cases`, `read_labelled`, `midog.run.load`.
    """
    track, predictions = arguments.track, arguments.predictions or []
    if arguments.ground_truth:
        if arguments.split or arguments.fold:
            raise UserError(f"{arguments.ground_truth}: --split and --fold choose from folders; give them with --data")
        if not predictions:
            raise UserError(f"{arguments.ground_truth}: nothing to compare with it; give --predictions, too")
        truths = read_ground_truth(arguments.ground_truth, track)
        cases, remarks = read_cases(track, truths, *predictions)
        source = f"{_listed(predictions)} against {arguments.ground_truth}"
        return Inputs(cases, remarks, source, spacings=given_spacings(track, truths, *predictions))
    split, folds = given_folds(arguments.split, arguments.fold)
    labelled = read_labelled(track, arguments.data, split, folds)
    fields = labelled.items if track == 1 else []
    if predictions:
        cases, remarks = read_cases(track, labelled.truths, *predictions, chosen=True)
        systems = _systems(track, labelled, predictions, model, system)
        made_by = _listed(predictions)
        answered = {case.image for case in cases}
        fields = [item for item in fields if item.image in answered]
        known = extents(fields)
    else:
        known = extents(fields)  # first of all: a missing image should not end a run of hours
        runner = load(system, track, model, arguments.device, arguments.precision)
        found = results_of(runner, labelled)
        cases = [case_of(track, image, labelled.truths[image], result) for image, result in found]
        remarks, systems = [], dict.fromkeys(labelled.truths, runner.system)
        made_by = str(runner.system)
    said, trained = _trained(labelled, systems)
    chosen = f", fold {', '.join(folds)} of {split.path}" if split else ""
    source = f"{made_by} against {_listed(arguments.data)}{chosen}"
    if track == 2:
        names = {f"domain_{number}": name for number, name in enumerate(labelled.domains)}
        return Inputs(cases, remarks + said, source, names=names, trained=trained)
    once, notes = _counted_once(cast("list[DetectionCase]", cases), known)
    notes += [
        f"slide {slide} comes in {_listed(scans)}: the same figure may count in each."
        for slide, scans in scanned_twice(fields).items()
    ]
    return Inputs(
        [*once],
        remarks + said,
        source,
        notes,
        sets={item.image: item.set for item in fields},
        scanners={item.image: item.scanner for item in fields},
        areas={image: extent.mm2 for image, extent in known.items()},
        spacings={item.image: item.um_per_px for item in fields},
        confidences={
            item.image: dict(zip(map(tuple, labelled.truths[item.image]["annotations"]), item.confidences, strict=True))
            for item in fields
            if item.confidences
        },
        trained=trained,
    )


def _counted_once(cases: Sequence[DetectionCase], known: Mapping[str, Extent]) -> tuple[list[DetectionCase], list[str]]:
    """Cases without what an earlier image shows, too, and a note if there is any such tissue."""
    if not any(len(extent.shared) for extent in known.values()):
        return list(cases), []
    once = [counted_once(case, known[case.image].shared) for case in cases]
    before, after = (sum(case.positives for case in each) for each in (cases, once))
    return once, [
        f"{before - after} of {before} figures are seen in more than one image; like their tissue and what is found in "
        "it, they count once, in the first of their images."
    ]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _systems(
    track: int, labelled: Labelled, predictions: Sequence[Path], model: str | Path | None, system: str | None
) -> dict[str, System]:
    """By image the system that made its prediction: by predict's note if it is still there, else the one that is named.

    A note of other weights than the named system's stands: of a fold's, for one, which did not learn from the image.
    """
    folder = model_folder(model)
    named = read_system(find_folder(folder, system, track) / "model.yaml") if system else None
    systems = {} if named is None else dict.fromkeys(labelled.truths, named)
    known: dict[str, System | None] = {}
    for image, about in read_abouts(track, labelled.truths, *predictions).items():
        if named and about.version == named.version:
            continue
        if about.system not in known:
            path = folder / about.system / "model.yaml"
            known[about.system] = read_system(path) if path.exists() else None
        found = known[about.system]
        systems.pop(image, None)
        if found and found.version == about.version:
            systems[image] = found
    return systems


def _trained(labelled: Labelled, systems: Mapping[str, System]) -> tuple[list[str], frozenset[str]]:
    """Warnings, and the images with data that a system was trained on."""
    chosen = [(item, systems[item.image]) for item in labelled.items if item.image in systems]
    by_name = {str(system): system for _, system in chosen}
    said = [
        training_cases(system, [(item.set, item.case) for item, other in chosen if str(other) == name])
        for name, system in by_name.items()
    ]
    trained = frozenset(item.image for item, system in chosen if system.trained_on(item.set, item.case))
    return [text for text in said if text], trained


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
