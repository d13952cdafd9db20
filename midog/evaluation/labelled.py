"""Folders of labelled fields or crops as a ground truth in the organisers' layout, and a system's results on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog import job
from midog.errors import UserError, brief
from midog.evaluation.cases import CLASSES as SUBTYPES
from midog.evaluation.cases import Truths
from midog.evaluation.tables import CLASSES, chosen_images, read_crop_table, select_images, split_selection
from midog.images.slide import open_slide
from midog.images.stack import CROP_SIDE, CROP_UM_PER_PX
from midog.run import Track1, Track2


@dataclass(frozen=True)
class Item:
    """One labelled field (Track 1) or crop (Track 2).

    Attributes:
        image: the name in the ground truth that it belongs to: its own, or its stack's.
        path: its file.
        set, case: name of its folder, and its case in there.
        domain: number of its tumour domain.
        um_per_px: of both axes, as its table says.
    """

    image: str
    path: Path
    set: str
    case: str
    domain: int
    um_per_px: float


@dataclass(frozen=True)
class Labelled:
    """A ground truth made from folders.

    Attributes:
        truths: as `midog.evaluation.cases.read_ground_truth` gives them.
        items: fields, or crops in the order of their stacks' pages.
        domains: what each tumour domain is called.
    """

    truths: Truths
    items: list[Item]
    domains: list[str]


def read_labelled(track: int, selections: Sequence[str]) -> Labelled:
    """The ground truth of some folders; no image is read.

    Args:
        track: 1 or 2.
        selections: DIR, DIR:CASE,CASE, DIR:-CASE or DIR:COLUMN=VALUE, see `midog.evaluation.tables.select_images`.

    Raises:
        UserError: no table, a column, a case or all images are missing; two fields of one name.
    """
    return _fields(selections) if track == 1 else _crops(selections)


def _fields(selections: Sequence[str]) -> Labelled:
    """Each selection is a tumour domain; its ROI type is "hotspot" where it has images.csv, else "random"."""
    truths: Truths = {}
    items = []
    for domain, selection in enumerate(selections):
        folder, images, figures = chosen_images(selection)
        kind = "hotspot" if (folder / "images.csv").exists() else "random"
        for row in images.itertuples():
            name, path = Path(row.image).name, folder / row.image
            if name in truths:
                raise UserError(f"{path}: a second image of this name; evaluate these folders one by one")
            mine = figures[(figures.image == row.image) & (figures.label == CLASSES[0])]
            mm = mine[["x", "y"]].to_numpy(float) * float(row.um_per_px) / 1000
            truths[name] = {
                "annotations": [[float(x), float(y), 0.0] for x, y in mm],
                "tumor domain": domain,
                "roi type": kind,
            }
            items.append(Item(name, path, folder.resolve().name, str(row.case), domain, float(row.um_per_px)))
    return Labelled(truths, items, [_short(selection) for selection in selections])


def _short(selection: str) -> str:
    folder, cases = split_selection(selection)
    return folder.resolve().name + (f":{cases}" if cases else "")


def _crops(selections: Sequence[str]) -> Labelled:
    """A stack is a case, of whatever folders; domains are the tables', in alphabetical order."""
    import pandas as pd

    tables = []
    for selection in selections:
        folder, cases = split_selection(selection)
        table = select_images(read_crop_table(folder), cases, selection)
        if table.empty:
            raise UserError(f"{selection}: no crop of label 0 or 1 is left; choose other cases")
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


def areas_mm2(items: Sequence[Item]) -> dict[str, float]:
    """The area of every field by its name; each is opened."""
    areas = {}
    for item in items:
        with open_slide(item.path, item.um_per_px) as slide:
            areas[item.image] = slide.size[0] * slide.size[1] * item.um_per_px**2 / 1e6
    return areas


def results_of(runner: Track1 | Track2, labelled: Labelled) -> Iterator[tuple[str, Any]]:
    """Image by image the JSON that `predict` would write: a field is read at its table's um per pixel.

    Raises:
        UserError: an image cannot be read, or weights are broken.
    """
    from tqdm import tqdm

    if isinstance(runner, Track1):
        for item in tqdm(labelled.items, "fields", unit="field", disable=None, leave=False):
            yield item.image, runner.result(item.path, item.um_per_px)
        return
    bar = tqdm(labelled.items, "crops", unit="crop", disable=None, leave=False)
    crops = job.atypical_result(runner.classify(read_crop(item.path) for item in bar))
    by_image: dict[str, list[Any]] = {image: [] for image in labelled.truths}
    for item, crop in zip(labelled.items, crops, strict=True):
        by_image[item.image].append(crop)
    yield from by_image.items()
