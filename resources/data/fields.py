"""Labelled fields, regions, slides and crops, opened as they are read; `midog.evaluation.tables` says how their folders
look and how cases are chosen.

`python -m resources.train.mine` finds more hard negatives, which `add_mined` adds.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from midog.errors import UserError, brief
from midog.evaluation.metrics import MATCH_UM
from midog.evaluation.splits import Split
from midog.evaluation.tables import (
    BOX_COLUMNS,
    CLASSES,
    FIGURE_COLUMNS,
    UNCLEAR,
    check_columns,
    chosen_images,
    holds_crops,
    split_selection,
)
from midog.images.slide import ArraySlide, Slide, at_spacing
from midog.images.stain import stain_normalised
from resources.data.crop_regions import CropRegion, read_crop_regions
from resources.data.on_demand import CACHE_BYTES, OnDemandSlide

logger = logging.getLogger(__name__)

MINED_COLUMNS = ("set", *FIGURE_COLUMNS, "score")
WINDOW = 512  # px of a side, to say what a window costs
HELD_BYTES = 2 << 30  # of pixels that a training decodes beforehand
CROP_UM = 40.0  # side of the largest field that is a crop around one cell
DEAR_PX = 8 * WINDOW * WINDOW  # that are decoded for a window


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


@dataclass
class Field(Slide):
    """One labelled image, or a part of it, as a `Slide`.

    Attributes:
        name, case, source: file, case or slide, name of the folder.
        slide: its pixels.
        figures, hard_negatives, unclear: float32 (N, 2), centres x, y in px of mitotic and non-mitotic figures, and of
            cells that may be either.
        corner: of the first pixel in the file, px of the file.
        factor: px to a px of the file, (x, y).
        figure_boxes: float32 (N, 4), corners x0, y0, x1, y1 in px of the mitotic figures' boxes, NaN where a figure has
            none; None where the table has no boxes.
    """

    name: str
    case: str
    source: str
    slide: Slide
    figures: NDArray[np.float32] = field(default_factory=_no_points)
    hard_negatives: NDArray[np.float32] = field(default_factory=_no_points)
    unclear: NDArray[np.float32] = field(default_factory=_no_points)
    corner: tuple[int, int] = (0, 0)
    factor: tuple[float, float] = (1.0, 1.0)
    figure_boxes: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        super().__init__(self.slide.size, self.slide.um_per_px, self.slide.origin_mm)
        self.segment = self.slide.segment

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self.slide.read(x, y, width, height)

    def at(self, um_per_px: float) -> "Field":
        """Itself at a spacing, as inference reads it: its own pixels where they are within 10 %, else resampled."""
        slide = at_spacing(self.slide, um_per_px)
        if slide is self.slide:
            return self
        x, y = (found / um_per_px for found in self.um_per_px)
        boxes = self.figure_boxes
        return replace(
            self,
            slide=slide,
            figures=scale_points(self.figures, (x, y)),
            hard_negatives=scale_points(self.hard_negatives, (x, y)),
            unclear=scale_points(self.unclear, (x, y)),
            figure_boxes=boxes if boxes is None else scale_points(boxes.reshape(-1, 2), (x, y)).reshape(-1, 4),
            factor=(self.factor[0] * x, self.factor[1] * y),
        )

    def normalised(self, stain_normalisation: Literal["none", "macenko"]) -> "Field":
        """Itself as a detector of this `stain_normalisation` reads it: see `midog.images.stain`."""
        slide = stain_normalised(self.slide, self.name) if stain_normalisation == "macenko" else self.slide
        return self if slide is self.slide else replace(self, slide=slide)

    def in_file(self, points: ArrayLike) -> NDArray[np.float32]:
        """Points, float (N, 2) in px, in px of the file."""
        return scale_points(points, (1 / self.factor[0], 1 / self.factor[1])) + np.array(self.corner, np.float32)

    def from_file(self, points: ArrayLike) -> NDArray[np.float32]:
        """The opposite of `in_file`."""
        return scale_points(np.asarray(points) - self.corner, self.factor)

    @property
    def area_mm2(self) -> float:
        return self.size[0] * self.size[1] * self.um_per_px[0] * self.um_per_px[1] / 1e6


def is_crop(field: Field) -> bool:
    """Whether a field is no more than a crop around a cell."""
    return max(side * spacing for side, spacing in zip(field.size, field.um_per_px, strict=True)) <= CROP_UM


def scale_points(points: ArrayLike, factor: tuple[float, float]) -> NDArray[np.float32]:
    """Where points of an image, float (N, 2) in px, are when it is scaled; a pixel's centre is at integers in both."""
    return ((np.asarray(points, np.float32) + 0.5) * np.array(factor) - 0.5).astype(np.float32)


def read_fields(
    selections: Sequence[str | Path], split: Split | None = None, folds: Collection[str] = ()
) -> list[Field]:
    """Open the fields of one or several folders, and say so where reading windows of them will be dear.

    Args:
        selections: FOLDER, or FOLDER:CASE,CASE (only these), or FOLDER:-CASE,CASE (all but these). A CASE may hold *
            for any text; the case of an image without one is its name. COLUMN=VALUE chooses by another column of the
            table (split=test). Every crop of a folder of crops is a field with all the cells that lie in it.
        split, folds: only the cases of these folds of a split.

    Raises:
        UserError: no table, a column, an image or a case is missing, an unknown label, an image of another size than
            its table says.
    """
    fields: list[Field] = []
    for selection in selections:
        if holds_crops(split_selection(selection)[0]):
            fields += map(_field_of_crop, read_crop_regions(selection, split, folds))
            continue
        folder, images, figures = chosen_images(selection, split, folds)
        by_image = dict(list(figures.groupby("image")))
        rows = tqdm(images.itertuples(), f"{folder.name}: opening", len(images), disable=None, leave=False)
        fields += [_read_field(folder, row, by_image.get(row.image, figures[:0])) for row in rows]
    _say_dear(fields)
    return fields


def _read_field(folder: Path, row: Any, figures: pd.DataFrame) -> Field:
    """Of a row of images.csv and its rows of figures.csv."""
    path = folder / row.image
    slide = OnDemandSlide(path, float(row.um_per_px))
    said = getattr(row, "width", 0), getattr(row, "height", 0)
    inside = labels_inside(path, slide.size, said, figures)

    def centres(label: str) -> NDArray[np.float32]:
        return inside[inside.label == label][["x", "y"]].to_numpy(np.float32)

    mitotic, others, unclear = map(centres, (*CLASSES, UNCLEAR))
    boxes = None
    if {*BOX_COLUMNS} <= {*inside.columns}:
        boxes = inside[inside.label == CLASSES[0]][[*BOX_COLUMNS]].to_numpy(np.float32)
    return Field(row.name, row.case, folder.resolve().name, slide, mitotic, others, unclear, figure_boxes=boxes)


def labels_inside(path: Path, size: tuple[int, int], said: tuple[int, int], figures: pd.DataFrame) -> pd.DataFrame:
    """The labels on an image; those beside it are told.

    Args:
        path: of the image, for messages.
        size: (width, height) that it has, px.
        said: (width, height) that the labels are for; 0 where that is not known.
        figures: DataFrame with x and y, px.

    Raises:
        UserError: it has another size than its labels are for.
    """
    if all(said) and said != size:
        raise UserError(
            f"{path}: {size[0]} x {size[1]} px, but its labels are for {said[0]} x {said[1]}; "
            "give the image at its full size"
        )
    inside = (figures.x >= 0) & (figures.x < size[0]) & (figures.y >= 0) & (figures.y < size[1])
    if not inside.all():
        logger.warning("%s: labels outside the image, left out: %d", path, (~inside).sum())
    return figures[inside]


def _field_of_crop(crop: CropRegion) -> Field:
    slide = OnDemandSlide(crop.path, crop.um_per_px, crop.part)
    return Field(crop.name, crop.case, crop.source, slide, crop.figures, crop.hard_negatives, corner=crop.part[:2])


def in_memory(fields: Sequence[Field]) -> list[Field]:
    """Fields with their pixels decoded, once, where all of them fit in `HELD_BYTES`; else as they are.

    Processes that are forked afterwards share the memory.
    """
    if sum(each.size[0] * each.size[1] * 3 for each in fields) > HELD_BYTES:
        return list(fields)
    return [
        replace(each, slide=ArraySlide(each.read(0, 0, *each.size), each.um_per_px, each.origin_mm))
        for each in tqdm(fields, "decoding", disable=None, leave=False)
    ]


def _say_dear(fields: Sequence[Field]) -> None:
    """Warn once of images in strips or in one piece, when they are too many to stay decoded."""
    dear = [each for each in fields if decoded_px(each) > DEAR_PX]
    if sum(each.size[0] * each.size[1] * 3 for each in dear) > CACHE_BYTES:
        example = max(dear, key=decoded_px)
        logger.warning(
            "%s: %d of %d images are in strips or in one piece: for a window of %d px, %.0f million pixels of the "
            "first are decoded; put all into tiles once: python -m resources.data.retile DIR OUT",
            *(example.name, len(dear), len(fields), WINDOW, decoded_px(example) / 1e6),
        )


def decoded_px(slide: Slide) -> int:
    """Pixels that are decoded for a window, where nothing is kept."""
    sides = [
        min(side, -(-WINDOW // part) * part) if part > 1 else min(side, WINDOW)
        for side, part in zip(slide.size, slide.segment, strict=True)
    ]
    return sides[0] * sides[1]


def add_mined(fields: Sequence[Field], paths: Sequence[str | Path]) -> list[Field]:
    """Add the hard negatives that `python -m resources.train.mine` found.

    Rows of images that are not among the fields are left out, for a file may hold cases that this run validates on. A
    row within 7.5 um of a labelled cell, or of a row before it, is that cell, and left out, too.

    Args:
        fields: of any number.
        paths: CSV files with the columns of `MINED_COLUMNS`; x and y in px of the images as stored.

    Returns:
        the fields, in the same order.

    Raises:
        UserError: a file cannot be read, lacks a column, has a bad number or another label, or no row for any field.
    """
    there = {(each.source, each.name) for each in fields}
    mined: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
    for path in paths:
        table = _read_mined(Path(path))
        by_image = {
            (name, image): rows for (name, image), rows in table.groupby(["set", "image"]) if (name, image) in there
        }
        if not by_image:
            raise UserError(f"{path}: no row for any of the images of --data; mine those, or leave this file out")
        for key, rows in by_image.items():
            mined.setdefault(key, []).extend(rows[["x", "y"]].to_numpy(np.float32))
    return [_with_hard_negatives(each, mined.get((each.source, each.name), [])) for each in fields]


def _read_mined(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"set": str, "image": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); make it with midog train mine") from None
    check_columns(path, table, MINED_COLUMNS, ("x", "y"))
    other = table.label[table.label != CLASSES[1]]
    if len(other):
        line = int(np.flatnonzero(table.label != CLASSES[1])[0]) + 2
        raise UserError(f"{path}: line {line}: label {other.iloc[0]!r}, only {CLASSES[1]!r} expected")
    return table


def _with_hard_negatives(field: Field, points: Sequence[NDArray[np.float32]]) -> Field:
    """A field with more hard negatives, those of `points` (px of the file) that are no cell it has."""
    hard_negatives = field.hard_negatives
    for stored in points:
        point = field.from_file(stored)
        cells = np.concatenate([field.figures, hard_negatives, field.unclear])
        if (np.hypot(*((cells - point) * field.um_per_px).T) > MATCH_UM).all():
            hard_negatives = np.concatenate([hard_negatives, point[None]])
    return replace(field, hard_negatives=hard_negatives)
