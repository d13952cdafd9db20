"""Labelled fields in memory: folders with `images.csv` and `figures.csv`, or with `labels.csv` alone.

`images.csv` has one row an image (image, case, um_per_px), `figures.csv` one row
a labelled cell (image, x, y, label): "mitotic figure" or "non-mitotic figure".
Coordinates are pixels of the image. A folder with only `labels.csv` (image,
um_per_px) is tissue without figures. `resources/data/prepare.py` makes both.
`resources/train/mine.py` finds more look-alikes, which `add_mined` adds.
"""

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from midog.errors import UserError, brief
from midog.images.slide import ArraySlide

UM_PER_PX = 0.25
RESAMPLED_FROM = 0.10  # as at inference: images within 10 % of the spacing keep their pixels
CLASSES = ("mitotic figure", "non-mitotic figure")
FIGURE_COLUMNS = ("image", "x", "y", "label")
MINED_COLUMNS = ("set", *FIGURE_COLUMNS, "score")
SAME_CELL_UM = 7.5  # the challenge's distance of a match


@dataclass
class Field(ArraySlide):
    """One labelled image as a `Slide`, in its own pixels or, if those are far from .25 um, resampled to .25 um.

    Attributes:
        name, case, source: file, case or slide, name of the folder.
        pixels: uint8 (H, W, 3) RGB.
        um_per_px: of `pixels`.
        figures, look_alikes: float32 (N, 2), centres x, y in px of mitotic and non-mitotic figures.
        factor: px of `pixels` to a px of the file.
    """

    name: str
    case: str
    source: str
    pixels: np.ndarray
    um_per_px: tuple
    figures: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    look_alikes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__init__(self.pixels, self.um_per_px)

    @property
    def area_mm2(self):
        return self.pixels.shape[0] * self.pixels.shape[1] * self.um_per_px[0] * self.um_per_px[1] / 1e6


def read_fields(selections):
    """Read the fields of one or several folders.

    Args:
        selections: strings FOLDER, or FOLDER:CASE,CASE (only these), or FOLDER:-CASE,CASE (all but these). A CASE
            may hold * for any text; the case of an image without one is its name. COLUMN=VALUE chooses by another
            column of the table (split=test).

    Returns:
        list of `Field`.

    Raises:
        UserError: no table, a column, an image or a case is missing, an unknown label.
    """
    fields = []
    for selection in selections:
        folder, _, cases = str(selection).partition(":")
        images, figures = read_tables(Path(folder))
        images = select_images(images, cases, selection)
        if images.empty:
            raise UserError(f"{selection}: no image is left; choose other cases")
        by_image = dict(list(figures.groupby("image")))
        for row in images.itertuples():
            fields.append(_read_field(Path(folder), row, by_image.get(row.image)))
    return fields


def read_tables(folder):
    paths = [folder / name for name in ("images.csv", "regions.csv", "labels.csv")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(f"{folder}: no images.csv; make it with resources/data/prepare.py")
    try:
        images = pd.read_csv(path, dtype={"case": str, "slide": str})
        figures_path = folder / "figures.csv"
        figures = pd.read_csv(figures_path) if figures_path.exists() else pd.DataFrame(columns=[*FIGURE_COLUMNS])
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with resources/data/prepare.py") from None
    _check(path, images, ("image", "um_per_px"), ("um_per_px",))
    _check(figures_path, figures, FIGURE_COLUMNS, ("x", "y"))
    if not (images.um_per_px > 0).all():
        raise UserError(f"{path}: an um_per_px is not above 0; see resources/data/fields.py")
    if "case" not in images:
        images["case"] = images["slide"] if "slide" in images else images["image"]
    images["case"] = images["case"].fillna(images["image"])
    unknown = sorted(set(figures.label) - set(CLASSES), key=str)
    if unknown:
        raise UserError(f"{figures_path}: label {unknown[0]!r} is unknown; {' or '.join(CLASSES)} expected")
    return images, figures


def _check(path, table, needed, numbers):
    """The columns `needed` are there, and those of `numbers` hold finite numbers."""
    missing = sorted(set(needed) - set(table.columns))
    if missing:
        raise UserError(f"{path}: column {', '.join(missing)} is missing; see resources/data/fields.py")
    for column in numbers:
        bad = ~np.isfinite(pd.to_numeric(table[column], errors="coerce").to_numpy(float))
        if bad.any():
            value = table[column].iloc[bad.argmax()]
            raise UserError(f"{path}: line {bad.argmax() + 2}: {column} is {value}, a number expected")


def select_images(images, cases, selection):
    if not cases:
        return images
    patterns = cases.removeprefix("-").split(",")
    fits = {pattern: _fitting(images, pattern, selection) for pattern in patterns}
    absent = [pattern for pattern in patterns if not fits[pattern].any()]
    if absent:
        known = ", ".join(sorted(set(images.case))[:20])
        raise UserError(f"{selection}: case {', '.join(absent)} is not there; known: {known}")
    chosen = np.any(list(fits.values()), axis=0)
    return images[~chosen if cases.startswith("-") else chosen]


def _fitting(images, pattern, selection):
    """Which rows a CASE or COLUMN=VALUE of a selection means: bool (N,)."""
    column, equals, value = pattern.partition("=")
    if not equals:
        column, value = "case", pattern
    if column not in images:
        raise UserError(f"{selection}: no column {column}; known: {', '.join(images.columns)}")
    return images[column].astype(str).map(lambda each: fnmatchcase(each, value))


def _read_field(folder, row, figures):
    path = folder / row.image
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"{path}: cannot be read; copy the images again")
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    factor = 1.0
    spacing = float(row.um_per_px)
    if abs(spacing / UM_PER_PX - 1) > RESAMPLED_FROM:
        factor = spacing / UM_PER_PX
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=way)
        spacing = UM_PER_PX
    points = {}
    for label in CLASSES:
        chosen = figures[figures.label == label] if figures is not None else None
        centres = chosen[["x", "y"]].to_numpy(np.float32) if chosen is not None else np.zeros((0, 2), np.float32)
        points[label] = scale_points(centres, factor)
    return Field(row.image, row.case, folder.resolve().name, pixels, (spacing, spacing), *points.values(), factor)


def scale_points(points, factor):
    """Where points of an image, float (N, 2) in px, are when it is scaled; a pixel's centre is at integers in both."""
    return (points + 0.5) * factor - 0.5


def add_mined(fields, paths):
    """Add the look-alikes that `resources/train/mine.py` found.

    Rows of images that are not among the fields are left out, for a file may hold cases that this run validates on. A
    row within 7.5 um of a labelled cell, or of a row before it, is that cell, and left out, too.

    Args:
        fields: list of `Field`.
        paths: CSV files with the columns of `MINED_COLUMNS`; x and y in px of the images as stored.

    Returns:
        list of `Field`, in the same order.

    Raises:
        UserError: a file cannot be read, lacks a column, has a bad number or another label, or no row for any field.
    """
    there = {(each.source, each.name) for each in fields}
    mined = {}
    for path in paths:
        table = _read_mined(path)
        by_image = {key: rows for key, rows in table.groupby(["set", "image"]) if key in there}
        if not by_image:
            raise UserError(f"{path}: no row for any of the images of --data; mine those, or leave this file out")
        for key, rows in by_image.items():
            mined.setdefault(key, []).extend(rows[["x", "y"]].to_numpy(np.float32))
    return [_with_look_alikes(each, mined.get((each.source, each.name), [])) for each in fields]


def _read_mined(path):
    try:
        table = pd.read_csv(path, dtype={"set": str, "image": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); make it with resources/train/mine.py") from None
    _check(path, table, MINED_COLUMNS, ("x", "y"))
    other = table.label[table.label != CLASSES[1]]
    if len(other):
        raise UserError(f"{path}: line {other.index[0] + 2}: label {other.iloc[0]!r}, only {CLASSES[1]!r} expected")
    return table


def _with_look_alikes(field, points):
    """A field with more look-alikes, those of `points` (px of the file) that are no cell it has."""
    look_alikes = field.look_alikes
    for point in points:
        point = scale_points(point, field.factor)
        away = (np.concatenate([field.figures, look_alikes]) - point) * field.um_per_px
        if (np.hypot(*away.T) > SAME_CELL_UM).all():
            look_alikes = np.concatenate([look_alikes, point[None]])
    return replace(field, look_alikes=look_alikes)
