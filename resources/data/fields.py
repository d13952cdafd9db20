"""Labelled fields in memory; `midog.evaluation.tables` says how their folders look and how cases are chosen.

`python -m resources.train.mine` finds more hard negatives, which `add_mined` adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from midog.errors import UserError, brief
from midog.evaluation.metrics import MATCH_UM
from midog.evaluation.tables import CLASSES, FIGURE_COLUMNS, check_columns, chosen_images
from midog.images.slide import ArraySlide

UM_PER_PX = 0.25
RESAMPLED_FROM = 0.10  # as at inference: images within 10 % of the spacing keep their pixels
MINED_COLUMNS = ("set", *FIGURE_COLUMNS, "score")


def _no_points() -> NDArray[np.float32]:
    return np.zeros((0, 2), np.float32)


@dataclass
class Field(ArraySlide):
    """One labelled image as a `Slide`, in its own pixels or, if those are far from .25 um, resampled to .25 um.

    Attributes:
        name, case, source: file, case or slide, name of the folder.
        pixels: uint8 (H, W, 3) RGB.
        um_per_px: of `pixels`.
        figures, hard_negatives: float32 (N, 2), centres x, y in px of mitotic and non-mitotic figures.
        factor: px of `pixels` to a px of the file.
    """

    name: str
    case: str
    source: str
    pixels: NDArray[np.uint8]
    um_per_px: tuple[float, float]
    figures: NDArray[np.float32] = field(default_factory=_no_points)
    hard_negatives: NDArray[np.float32] = field(default_factory=_no_points)
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__init__(self.pixels, self.um_per_px)

    @property
    def area_mm2(self) -> float:
        return self.pixels.shape[0] * self.pixels.shape[1] * self.um_per_px[0] * self.um_per_px[1] / 1e6


def read_fields(selections: Sequence[str | Path]) -> list[Field]:
    """Read the fields of one or several folders.

    Args:
        selections: FOLDER, or FOLDER:CASE,CASE (only these), or FOLDER:-CASE,CASE (all but these). A CASE may hold *
            for any text; the case of an image without one is its name. COLUMN=VALUE chooses by another column of the
            table (split=test).

    Raises:
        UserError: no table, a column, an image or a case is missing, an unknown label.
    """
    fields = []
    for selection in selections:
        folder, images, figures = chosen_images(selection)
        by_image = dict(list(figures.groupby("image")))
        fields += [_read_field(folder, row, by_image.get(row.image)) for row in images.itertuples()]
    return fields


def _read_field(folder: Path, row: Any, figures: pd.DataFrame | None) -> Field:
    """Of a row of images.csv and its rows of figures.csv."""
    path = folder / row.image
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if stored is None:
        raise UserError(f"{path}: cannot be read; copy the images again")
    pixels = np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)
    factor = 1.0
    spacing = float(row.um_per_px)
    if abs(spacing / UM_PER_PX - 1) > RESAMPLED_FROM:
        factor = spacing / UM_PER_PX
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        pixels = np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=way), np.uint8)
        spacing = UM_PER_PX

    def centres(label: str) -> NDArray[np.float32]:
        if figures is None:
            return _no_points()
        return scale_points(figures[figures.label == label][["x", "y"]].to_numpy(np.float32), factor)

    mitotic, others = map(centres, CLASSES)
    source = folder.resolve().name
    return Field(row.image, row.case, source, pixels, (spacing, spacing), mitotic, others, factor)


def scale_points(points: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Where points of an image, float (N, 2) in px, are when it is scaled; a pixel's centre is at integers in both."""
    return (points + 0.5) * factor - 0.5


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
        point = scale_points(stored, field.factor)
        away = (np.concatenate([field.figures, hard_negatives]) - point) * field.um_per_px
        if (np.hypot(*away.T) > MATCH_UM).all():
            hard_negatives = np.concatenate([hard_negatives, point[None]])
    return replace(field, hard_negatives=hard_negatives)
