"""Folders of labelled fields or crops as a ground truth in the organisers' layout, and a system's results on them."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog import job
from midog.errors import UserError, brief
from midog.evaluation.cases import CLASSES as SUBTYPES
from midog.evaluation.cases import Truths
from midog.evaluation.metrics import ROI_TYPES
from midog.evaluation.provenance import UNKNOWN, describe
from midog.evaluation.splits import Split
from midog.evaluation.tables import (
    CLASSES,
    chosen_images,
    holds_crops,
    read_crop_table,
    select_images,
    split_selection,
)
from midog.images.slide import open_slide
from midog.images.stack import CROP_SIDE, CROP_UM_PER_PX
from midog.run import Track1, Track2

PLACES = (("source_image", "source_x", "source_y"), ("frame", "frame_x", "frame_y"))


@dataclass(frozen=True)
class Place:
    """Where a field was cut from.

    Attributes:
        source: name of the whole image, within its set.
        x, y: of the field's first pixel in there, px.
    """

    source: str
    x: int
    y: int


@dataclass(frozen=True)
class Item:
    """One labelled field (Track 1) or crop (Track 2).

    Attributes:
        image: the name in the ground truth that it belongs to: its own, or its stack's.
        path: its file.
        set, case: name of its folder, and its case in there.
        domain: its tumour domain, as in the ground truth: a field's by name, a crop's by number.
        um_per_px: of both axes, as its table says.
        scanner: of a field, or "unknown".
        slide: of a field, the glass as all sets name it.
        place: in a larger image that other fields may be from, too, or None.
        confidences: the readers' in each label of a field, in (0, 1], in the order of the ground truth; empty where
            the table has no `score`.
    """

    image: str
    path: Path
    set: str
    case: str
    domain: int | str
    um_per_px: float
    scanner: str = UNKNOWN
    slide: str = UNKNOWN
    place: Place | None = None
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A ground truth made from folders.

    Attributes:
        truths: as `midog.evaluation.cases.read_ground_truth` gives them.
        items: fields, or crops in the order of their stacks' pages.
        domains: what the number of a tumour domain stands for (Track 2).
    """

    truths: Truths
    items: list[Item]
    domains: Sequence[str] = ()


def read_labelled(
    track: int, selections: Sequence[str], split: Split | None = None, folds: Collection[str] = ()
) -> Labelled:
    """The ground truth of some folders; no image is read.

    Args:
        track: 1 or 2.
        selections: DIR, DIR:CASE,CASE, DIR:-CASE or DIR:COLUMN=VALUE, see `midog.evaluation.tables.select_images`.
        split, folds: of what the selections leave, only the cases of these folds; all without a split.

    Raises:
        UserError: no table, a column, a case or all images are missing; two fields of one name; a ROI type, a fold or
            a case that is not known; crops where fields are expected.
    """
    if split:
        split.check(folds)
    labelled = (_fields if track == 1 else _crops)(selections, split, folds)
    if not labelled.items:
        assert split
        raise UserError(f"{split.path}: no case of --data is in fold {', '.join(folds)}; choose other folds or folders")
    return labelled


def _fields(selections: Sequence[str], split: Split | None, folds: Collection[str]) -> Labelled:
    """A field's tumour domain is its tumour, or its folder's name where that is not known."""
    truths: Truths = {}
    items = []
    for selection in selections:
        if holds_crops(split_selection(selection)[0]):
            raise UserError(f"{selection}: crops, which have no field to search; give whole regions, or --track 2")
        folder, images, figures = chosen_images(selection, split, folds)
        source = folder.resolve().name
        by_image = dict(list(figures[figures.label == CLASSES[0]].groupby("image")))
        for row in describe(source, images).to_dict("records"):
            name, path, um_per_px = row["name"], folder / row["image"], float(row["um_per_px"])
            if name in truths:
                raise UserError(f"{path}: a second image of this name; evaluate these folders one by one")
            labels = by_image.get(row["image"], figures[:0])
            places = labels[["x", "y"]].to_numpy(float)
            tumor = source if row["tumor"] == UNKNOWN else row["tumor"]
            truths[name] = {
                "annotations": [[float(x) * um_per_px / 1000, float(y) * um_per_px / 1000, 0.0] for x, y in places],
                "tumor domain": tumor,
                "roi type": _roi_type(row, path, len(places) > 0 or (folder / "images.csv").exists()),
            }
            glass = row["scanner"], row["slide"]
            sure = tuple(labels.score.astype(float)) if "score" in labels and labels.score.notna().all() else ()
            items.append(Item(name, path, source, str(row["case"]), tumor, um_per_px, *glass, _place(row), sure))
    return Labelled(truths, items)


def _roi_type(row: Mapping[str, Any], path: Path, has_figures: bool) -> str:
    """As its table says, else after the way in which such fields are chosen."""
    told = row.get("roi_type")
    if not isinstance(told, str):
        return "hotspot" if has_figures else "random"
    if told not in ROI_TYPES:
        raise UserError(f"{path}: roi_type {told!r} in the table; {', '.join(ROI_TYPES)} or nothing expected")
    return told


def _place(row: Mapping[str, Any]) -> Place | None:
    for names in PLACES:
        source, x, y = (row.get(name, math.nan) for name in names)
        if isinstance(source, str) and job.is_finite(x) and job.is_finite(y):
            return Place(source, int(x), int(y))
    return None


def _crops(selections: Sequence[str], split: Split | None, folds: Collection[str]) -> Labelled:
    """A stack is a case, of whatever folders; domains are the tables', in alphabetical order."""
    import pandas as pd

    tables = []
    for selection in selections:
        folder, cases = split_selection(selection)
        table = select_images(read_crop_table(folder), cases, selection)
        if table.empty:
            raise UserError(f"{selection}: no crop of label 0 or 1 is left; choose other cases")
        if split:
            table = split.choose(table, folder.resolve().name, folds)
        tables.append(table.assign(folder=str(folder)))
    table = pd.concat(tables, ignore_index=True)
    names = sorted(set(table.domain.astype(str)))
    numbers = {name: number for number, name in enumerate(names)}
    truths: Truths = {}
    items = []
    for case, rows in table.groupby(table.case.astype(str)):  # in alphabetical order
        image = f"{str(case).replace('/', '_')}.tiff"
        if image in truths:
            raise UserError(f"{rows.folder.iloc[0]}: two cases become {image}; rename one in labels.csv")
        domains = [numbers[str(domain)] for domain in rows.domain]
        truths[image] = {
            "image": image,
            "labels": [SUBTYPES[label] for label in rows.label],
            "tumordomains": domains,
        }
        for row, domain in zip(rows.itertuples(), domains, strict=True):
            folder = Path(row.folder)
            name = folder.resolve().name
            items.append(Item(image, folder / row.file, name, str(case), domain, CROP_UM_PER_PX))
    return Labelled(truths, items, names)


def read_crop(path: Path) -> NDArray[np.uint8]:
    """A crop, uint8 (128, 128, 3) RGB; a smaller one (64 px) is mirrored outwards, a larger one cut: never rescaled.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); copy the crops again") from None
    for axis in (0, 1):
        missing = CROP_SIDE - pixels.shape[axis]
        if missing > 0:
            pad = [(0, 0)] * 3
            pad[axis] = missing // 2, missing - missing // 2
            pixels = np.pad(pixels, pad, mode="symmetric")
        else:
            pixels = pixels.take(np.arange(CROP_SIDE) + (-missing) // 2, axis=axis)
    return np.ascontiguousarray(pixels, np.uint8)


@dataclass(frozen=True)
class Extent:
    """What of a field counts.

    Attributes:
        mm2: its area, without what it shares.
        shared: float64 (K, 4), rectangles x0, y0, x1, y1 in mm of it that an earlier field shows, too.
    """

    mm2: float
    shared: NDArray[np.float64]


def extents(items: Sequence[Item]) -> dict[str, Extent]:
    """By a field's name, its extent; each file is opened for its size.

    Raises:
        UserError: an image is missing or cannot be read.
    """
    earlier: dict[tuple[str, str], list[tuple[int, int, int, int]]] = defaultdict(list)
    found = {}
    for item in items:
        with open_slide(item.path, item.um_per_px) as slide:
            width, height = slide.size
        shared = np.zeros((0, 4))
        if item.place:
            x, y = item.place.x, item.place.y
            others = earlier[item.set, item.place.source]
            shared = np.array(others, float).reshape(-1, 4) - (x, y, x, y)
            shared = np.clip(shared, 0, (width, height, width, height))
            shared = shared[(shared[:, 2:] > shared[:, :2]).all(axis=1)]
            others.append((x, y, x + width, y + height))
        px = width * height - _area_of_union(shared)
        edges = shared - 0.5  # a pixel's centre is at integers
        found[item.image] = Extent(px * item.um_per_px**2 / 1e6, edges * item.um_per_px / 1000)
    return found


def scanned_twice(items: Sequence[Item]) -> dict[str, list[str]]:
    """By slide the sets and scanners that it comes in, where these are several: the same cells may be in each."""
    scans: dict[str, set[str]] = defaultdict(set)
    for item in items:
        scans[item.slide].add(f"{item.set} ({item.scanner})")
    return {slide: sorted(each) for slide, each in scans.items() if slide != UNKNOWN and len(each) > 1}


def _area_of_union(rectangles: NDArray[np.float64]) -> float:
    """Of float64 (K, 4): over the cells between all their edges, those that one of them covers."""
    x, y = (np.unique(rectangles[:, axis::2]) for axis in (0, 1))
    left, top, right, bottom = rectangles.T[..., None]
    in_x, in_y = (left <= x[:-1]) & (x[:-1] < right), (top <= y[:-1]) & (y[:-1] < bottom)
    covered = (in_x[:, :, None] & in_y[:, None, :]).any(axis=0)
    return float(np.diff(x) @ covered @ np.diff(y))


def results_of(runner: Track1 | Track2, labelled: Labelled) -> Iterator[tuple[str, Any]]:
    """Image by image the JSON that `predict` would write: a field is read at its table's um per pixel.

    Raises:
        UserError: an image cannot be read, or weights are broken.
    """
    from tqdm import tqdm

    if isinstance(runner, Track1):
        for item in tqdm(labelled.items, "fields", unit="field", disable=None, leave=False):
            with runner.open(item.path, item.um_per_px) as slide:
                result = runner.result(item.path, slide)
            yield item.image, result
        return
    bar = tqdm(labelled.items, "crops", unit="crop", disable=None, leave=False)
    crops = job.atypical_result(runner.classify(read_crop(item.path) for item in bar))
    by_image: dict[str, list[Any]] = {image: [] for image in labelled.truths}
    for item, crop in zip(labelled.items, crops, strict=True):
        by_image[item.image].append(crop)
    yield from by_image.items()
