"""The systems of several folds: their predictions of what they never saw, and all of their networks as one system."""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from midog import about, job
from midog.calibration import Calibration
from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector
from midog.evaluation.labelled import extents, read_labelled, results_of
from midog.evaluation.splits import Split
from midog.evaluation.tables import chosen_images, holds_crops, split_selection
from midog.files import check_writable, write_json
from midog.run import Track1
from midog.system import DataSource, Made, System, Tissue, Weights, load_system
from resources.data.fields import CROP_UM, read_fields
from resources.train.kit.export import write_model
from resources.train.kit.mining import mine_fields, write_mined

logger = logging.getLogger(__name__)

MINED = "mined.csv"

Member = TypeVar("Member", bound=Weights)


def exported(folder: Path) -> System:
    """What the training of a fold exported, without the calibration, which was chosen on the very fold."""
    (path,) = folder.glob("model/*/model.yaml")
    system = load_system(path.parent)
    detector, classifier = system.detector, system.classifier
    assert detector is not None
    if classifier:
        members = tuple(replace(each, calibration=Calibration()) for each in classifier.members)
        classifier = replace(classifier, members=members, calibration=Calibration())
    return replace(system, detector=replace(detector, calibration=Calibration()), classifier=classifier)


def predict_fold(folder: Path, data: Sequence[str], split: Split, fold: str, out: Path, device: str) -> None:
    """Write OUT/IMAGE/, as `midog predict` does, for every image of a fold that is no crop, unless it is there.

    The note beside a result names the fold as its version: that system did not learn from the image.

    Args:
        folder: of the training that held the fold out.
        data: selections of fields; folders of crops among them are left out.
        split, fold: what was held out.
        out: for the predictions.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: an image cannot be read.
    """
    whole = [each for each in data if not holds_crops(split_selection(each)[0])]
    if not any(len(chosen_images(each, split, [fold])[1]) for each in whole):
        logger.info("fold %s: crops alone, no whole image to predict", fold)
        return
    labelled = read_labelled(1, whole, split, [fold])
    known = extents(labelled.items)
    items = [item for item in labelled.items if known[item.image].mm2 > (CROP_UM / 1000) ** 2]
    check_writable(out)
    name = job.RESULT_NAMES[1]
    left = [item for item in items if not (out / item.image / about.NAME).exists()]
    logger.info("fold %s: %d images to predict, %d are there", fold, len(left), len(items) - len(left))
    system = exported(folder)
    made = {"system": system.system, "version": f"{system.version}, fold {fold}"}
    spacings = {item.image: item.um_per_px for item in left}
    runner = Track1(system, device)
    for image, result in results_of(runner, dataclasses.replace(labelled, items=left)):
        check_writable(out / image)
        write_json(out / image / name, result)
        about.write_about(out / image, made | {"image": {"name": image}, "um_per_px_given": spacings[image]})


def mine_fold(folder: Path, data: Sequence[str], split: Split, fold: str, threshold: float, device: str) -> None:
    """Write FOLDER/mined.csv, unless it is there: hard negatives in the fold that FOLDER's training held out.

    Args:
        folder: of the training of a detector.
        data: selections of fields and crops.
        split, fold: what was held out.
        threshold: the least score.
        device: "auto", "cpu" or "cuda".
    """
    if (folder / MINED).exists():
        return
    system = exported(folder)
    assert system.detector is not None
    fields = read_fields(data, split, [fold])
    part = replace(system.detector, score_threshold=threshold)
    detector = SystemDetector(replace(system, detector=part, classifier=None), TorchEngine(device))
    rows, detections = mine_fields(detector, fields, threshold, system.detector.box_um)
    write_mined(folder / MINED, rows, fields, detections)


def join_folds(folders: Sequence[Path], out: Path, tissue: Tissue | None) -> None:
    """Write OUT/SYSTEM: the networks of all folds as the members of one system, not calibrated yet.

    Args:
        folders: of the folds' trainings.
        out: folder of systems.
        tissue: what all folds look like.
    """
    systems = [exported(folder) for folder in folders]
    first = systems[0]
    assert first.detector is not None
    target = out / first.system
    target.mkdir(parents=True, exist_ok=True)
    members = _copied(systems, [each.detector.members for each in systems if each.detector], target)
    joined = replace(first, detector=replace(first.detector, members=members))
    if first.classifier:
        of_classifiers = _copied(systems, [each.classifier.members for each in systems if each.classifier], target)
        joined = replace(joined, classifier=replace(first.classifier, members=of_classifiers))
    made = Made(code=first.made.code, data=_sources(systems), pretrained=first.made.pretrained, tissue=tissue)
    write_model(target, replace(joined, made=made))
    networks = len(members) + (len(joined.classifier.members) if joined.classifier else 0)
    logger.info("%d networks in %s; choose its threshold with midog tune --predictions", networks, target)


def _sources(systems: Sequence[System]) -> tuple[DataSource, ...]:
    """What at least one of the networks learnt from, each set once; folds of a split tell their cases."""
    joined: dict[str, DataSource] = {}
    for source in (source for each in systems for source in each.made.data):
        before = joined.setdefault(source.set, source)
        mined = dict.fromkeys(part for each in (before, source) for part in each.mined_sha256.split(",") if part)
        cases = tuple(sorted({*before.cases, *source.cases}))
        joined[source.set] = DataSource(set=source.set, cases=cases, mined_sha256=",".join(mined))
    return tuple(joined.values())


def _copied(systems: Sequence[System], members: Sequence[tuple[Member, ...]], target: Path) -> tuple[Member, ...]:
    """The members of every system as those of one, with their files in its folder."""
    copied = []
    for number, (system, own) in enumerate(zip(systems, members, strict=True)):
        for member in own:
            name = f"fold{number}_{member.weights}"
            shutil.copyfile(system.path_of(member), target / name)
            copied.append(replace(member, weights=name, shared=""))
    return tuple(copied)
