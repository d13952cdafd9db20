"""A laboratory's own count of a region: the places of its mitotic figures, as GeoJSON or as a table."""

import io
import logging
import math
import re
from collections import Counter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, one_line, quoted
from midog.images.slide import Slide
from midog.report.geojson import Feature, read_geojson

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

GEOJSON = {".geojson", ".json"}
REMEDY = "give GeoJSON with a point a figure, as QuPath exports it, or a table with columns x and y"
SEPARATORS = "\t;,|"
COLUMN = re.compile(
    "(?:centroid|center|centre|position|pos|coordinate|coord|point|location)?"
    "([xy])(?:coordinate|coord|position|pos|center|centre)?(px|pixels?|um|microns?|mm)?"
)  # of a name in small letters, without anything between its letters and digits
SAME_UNIT = {"pixel": "px", "pixels": "px", "micron": "um", "microns": "um"}
UNITS = ("px", "", "um", "mm")  # the first that both axes have; "" are px
CLASS_COLUMNS, IMAGE_COLUMNS = ("label", "class", "classification"), ("image", "imagename", "file", "filename")

LARGEST_MM = 10.0  # of a region; a cell whose centre is fewer px from the corner is cut by both edges

Floats = NDArray[np.float64]


def read_count(path: Path, slide: Slide, image: str) -> Floats:
    """The mitotic figures of a count.

    Args:
        path: GeoJSON in px from the corner of the scanned area, whose points have the class of a mitotic figure or
            none; or a table with any separator, in px, or as its columns say in um or mm, from the same corner. Rows of
            another class, or of another image where a column names it, are left out.
        slide: what was counted in.
        image: the name of its file.

    Returns:
        float64 (N, 2), px of the slide, a pixel's centre at integers; N is at least 1, and they may lie outside.

    Raises:
        UserError: it cannot be read, has no figure, or what looks like mm where px are expected.
    """
    if path.suffix.lower() in GEOJSON:
        places, unit = _of_geojson(path), "px"
    else:
        places, unit = _of_table(path, image)
    if unit in ("px", "") and (places <= LARGEST_MM).all():
        x, y = places.max(axis=0)
        remedy = "GeoJSON has px" if path.suffix.lower() in GEOJSON else "name the columns x_mm and y_mm"
        raise UserError(f"{path}: no figure lies beyond {x:.4g}, {y:.4g}, which looks like mm and not px; {remedy}")
    if unit in ("um", "mm"):
        places = places * (1000 if unit == "mm" else 1) / slide.um_per_px
    return places - 0.5 + slide.corner_px


def is_figure(name: str) -> bool:
    """Whether a class is one of mitotic figures: "mitotic figure", "Mitosis", or none at all."""
    small = name.strip().lower()
    return not small or ("mito" in small and not small.startswith("no"))


def _of_geojson(path: Path) -> Floats:
    _, features = read_geojson(path, REMEDY)
    figures = [each for each in features if is_figure(each.class_name)]
    _say_left_out(path, [each.class_name for each in features], len(figures))
    shapes = sorted({each.kind for each in figures} - {"Point", "MultiPoint"})
    if shapes:
        raise UserError(one_line(f"{path}: not points: {', '.join(shapes)}; mark each figure with a point"))
    return np.array([place for each in figures for place in _places(path, each)], float)


def _places(path: Path, mark: Feature) -> list[tuple[float, float]]:
    try:
        listed = [mark.coordinates] if mark.kind == "Point" else mark.coordinates
        places = [(float(x), float(y)) for x, y, *_ in listed]
    except (TypeError, ValueError, OverflowError):
        places = [(math.nan, math.nan)]
    if not np.isfinite(places).all():
        raise UserError(one_line(f"{path}: coordinates {quoted(mark.coordinates)} are no x and y; {REMEDY}"))
    return places


def _of_table(path: Path, image: str) -> tuple[Floats, str]:
    """Places, and the unit that their columns name."""
    table, separator = _read_table(path)
    by_name = {re.sub("[^a-z0-9]", "", _small(name)): name for name in map(str, table.columns)}
    matches = {column: match.groups("") for name, column in by_name.items() if (match := COLUMN.fullmatch(name))}
    columns = {(axis, SAME_UNIT.get(unit, unit)): column for column, (axis, unit) in matches.items()}
    unit = next((each for each in UNITS if ("x", each) in columns and ("y", each) in columns), None)
    if unit is None:
        found = ", ".join(map(str, table.columns[:8]))
        raise UserError(one_line(f"{path}: no columns x and y (x_px, x_um, x_mm, Centroid X), found {found}; {REMEDY}"))
    if not len(table):
        raise UserError(f"{path}: columns without a row; give the table of a region with figures")
    of_image = next((by_name[name] for name in IMAGE_COLUMNS if name in by_name), None)
    if of_image:
        same = table[of_image].map(lambda name: PurePath(str(name)).stem == PurePath(image).stem)
        if not same.any():
            raise UserError(f"{path}: no row of {image} by its column {of_image}; leave that out if all are")
        table = table[same]
    of_class = next((by_name[name] for name in CLASS_COLUMNS if name in by_name), None)
    if of_class:
        names = table[of_class].fillna("").tolist()
        table = table[[is_figure(name) for name in names]]
        _say_left_out(path, names, len(table))
    return np.stack([_numbers(path, table, columns[axis, unit], separator) for axis in "xy"], axis=1), unit


def _small(name: str) -> str:
    return name.lower().replace("µ", "u").replace("μ", "u")


def _read_table(path: Path) -> "tuple[pd.DataFrame, str]":
    """All as text, and what separates its columns: of `SEPARATORS` what its first line has most of, or white space."""
    import pandas as pd

    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # of spreadsheets
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    if separator not in head:
        separator = r"\s+"
    try:
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, skipinitialspace=True), separator
    except ValueError as error:
        raise UserError(one_line(f"{path}: no table that can be read ({error}); {REMEDY}")) from None


def _numbers(path: Path, table: "pd.DataFrame", column: str, separator: str) -> Floats:
    import pandas as pd

    texts = table[column] if separator == "," else table[column].str.replace(",", ".")
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(float)
    bad = ~np.isfinite(numbers)
    if bad.any():
        line, value = table.index[bad.argmax()] + 2, table[column].iloc[bad.argmax()]
        raise UserError(one_line(f"{path}: line {line}: {column} is {value}, a number expected; mend the table"))
    return numbers


def _say_left_out(path: Path, names: list[str], figures: int) -> None:
    others = Counter(name for name in names if not is_figure(name))
    said = ", ".join(f"{name} ({count})" for name, count in others.most_common(5))
    if not figures:
        what = f"only {said}" if said else "nothing"
        raise UserError(one_line(f"{path}: no mitotic figure in it, {what}; give the count of a region with figures"))
    if said:
        logger.info("%s: left out, no mitotic figures: %s", path, said)
