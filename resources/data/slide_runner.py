"""Databases of SlideRunner, as published with MITOS_WSI_CCMCT, MITOS_WSI_CMC, TUPAC16 and MIDOG++.

Source: Aubreville et al., "SlideRunner: a tool for massive cell annotations in
whole slide images", BVM 2018; the tables as DeepMicroscopy/SlideRunner makes
them (SlideRunner/dataAccess/database.py). A cell is one point in level-0
pixels, or the corners of a box; `agreedClass` is the experts' common class and
0 where they did not agree. Annotations deleted in the program stay in the file
and are marked; files of early versions lack the mark. TUPAC16's has files of one
name in the directories of several patients.
"""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path, PurePath, PureWindowsPath

import pandas as pd

from midog.errors import UserError, brief
from midog.evaluation.provenance import BERLIN, CS2, MAMMARY, MAST_CELL
from resources.data.cells import boxes_around
from resources.data.class_names import BACKGROUND, MITOTIC, UNCLEAR, meaning

logger = logging.getLogger(__name__)

POLYGON = 3  # of Annotations.type: outlines of tumor and regions, no cells
NEEDED = {
    "Slides": {"uid", "filename"},
    "Classes": {"uid", "name"},
    "Annotations": {"uid", "slide", "type", "agreedClass"},
    "Annotations_coordinates": {"annoId", "coordinateX", "coordinateY"},
}
TEST_SLIDES = {  # as in the notebooks of DeepMicroscopy/MITOS_WSI_CCMCT and /MITOS_WSI_CMC
    "ccmct": (
        "be10fa37ad6e88e1f406",
        "f3741e764d39ccc4d114",
        "c86cd41f96331adf3856",
        "552c51bfb88fd3e65ffe",
        "8c9f9618fcaca747b7c3",
        "c91a842257ed2add5134",
        "dd4246ab756f6479c841",
        "f26e9fcef24609b988be",
        "96274538c93980aad8d6",
        "add0a9bbc53d1d9bac4c",
        "1018715d369dd0df2fc0",
    ),
    "cmc": (
        "2d56d1902ca533a5b509",
        "69a02453620ade0edefd",
        "4eee7b944ad5e46c60ce",
        "b1bdee8e5e3372174619",
        "e09512d530d933e436d5",
        "022857018aa597374b6c",
        "13528f1921d4f1f15511",
    ),
}
DOMAINS = {"ccmct": (MAST_CELL, BERLIN, CS2), "cmc": (MAMMARY, BERLIN, CS2)}

SLIDES = """
SELECT uid AS slide, filename, {directory} AS directory, {width} AS width, {height} AS height
FROM Slides ORDER BY uid
"""
CELLS = """
SELECT Annotations.slide AS slide, Classes.name AS class,
       MIN(coordinateX) AS x0, MIN(coordinateY) AS y0, MAX(coordinateX) AS x1, MAX(coordinateY) AS y1
FROM Annotations
JOIN Annotations_coordinates ON Annotations_coordinates.annoId = Annotations.uid
LEFT JOIN Classes ON Classes.uid = Annotations.agreedClass
WHERE Annotations.type <> {polygon} AND {kept}
GROUP BY Annotations.uid
ORDER BY Annotations.uid
"""


def read_slide_runner(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the slides and the labelled cells of a database, and log how each class was taken.

    Args:
        path: the SQLite file.

    Returns:
        images: DataFrame (image, width, height, case), one row a slide; width and height 0 where it has none. `image`
            is its file's name, and its case that without the suffix; where names repeat, DIRECTORY/FILE of the
            directory.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a cell, in level-0 px; label is one of
            `fields.CLASSES`, or UNCLEAR for cells without an agreed class. Cells of other kinds are left out.

    Raises:
        UserError: not such a database, or no mitotic figure in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give a .sqlite file of SlideRunner")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            columns = _columns(path, database)
            kept = "COALESCE(Annotations.deleted, 0) = 0" if "deleted" in columns["Annotations"] else "TRUE"
            optional = {"directory": "''", "width": "0", "height": "0"}
            filled = {
                name: f"COALESCE({name}, {default})" if name in columns["Slides"] else default
                for name, default in optional.items()
            }
            slides = pd.read_sql(SLIDES.format(**filled), database)
            figures = pd.read_sql(CELLS.format(polygon=POLYGON, kept=kept), database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise UserError(f"{path}: not a database of SlideRunner ({brief(error)}); download it again") from None
    images = _named(slides)
    figures = figures[figures.slide.isin(slides.slide)].reset_index(drop=True)
    figures["image"] = figures.slide.map(dict(zip(slides.slide, images.image, strict=True)))
    figures["label"] = figures["class"].map(meaning, na_action="ignore").fillna(UNCLEAR)
    for (name, label), cells in figures.groupby(["class", "label"], dropna=False):
        told = name if isinstance(name, str) else "without agreement"
        logger.info(f"class {told!r}: {len(cells)} cells, taken as {label}")
    if MITOTIC not in set(figures.label):
        raise UserError(f"{path}: no mitotic figure in it; give one of the data set's databases of cells")
    figures = figures[figures.label != BACKGROUND].reset_index(drop=True)
    figures["x"], figures["y"] = (figures.x0 + figures.x1) / 2, (figures.y0 + figures.y1) / 2
    corners = ["x0", "y0", "x1", "y1"]
    points = (figures.x0 == figures.x1) & (figures.y0 == figures.y1)
    figures[corners] = figures[corners].mask(points, boxes_around(figures)[corners])
    return images, figures[["image", "x", "y", *corners, "label"]]


def of_set(name: str, images: pd.DataFrame) -> pd.DataFrame:
    """MITOS_WSI_CCMCT's (`ccmct`) or MITOS_WSI_CMC's (`cmc`) images with tumor, laboratory, scanner and split."""
    tumor, laboratory, scanner = DOMAINS[name]
    split = images.case.isin(TEST_SLIDES[name]).map({True: "test", False: "train"})
    return images.assign(tumor=tumor, laboratory=laboratory, scanner=scanner, split=split)


def _columns(path: Path, database: sqlite3.Connection) -> dict[str, set[str]]:
    """The columns of the tables that are read."""
    columns = {table: set(pd.read_sql(f"PRAGMA table_info({table})", database).name) for table in NEEDED}
    for table, needed in NEEDED.items():
        missing = sorted(needed - columns[table])
        if missing:
            what = f"table {table} has no {', '.join(missing)}" if columns[table] else f"table {table} is missing"
            raise UserError(f"{path}: {what}: not a database of SlideRunner of a known version; download it again")
    return columns


def _named(slides: pd.DataFrame) -> pd.DataFrame:
    """`SLIDES` with the columns image, width, height and case; absolute directories go without what they share."""
    if slides.filename.duplicated().any():
        paths = [PureWindowsPath(directory) for directory in slides.directory]  # takes both kinds of slash
        shared = len(os.path.commonprefix([path.parts for path in paths])) if paths[0].root else 0
        cases = [PurePath(*path.parts[shared:]).as_posix() for path in paths]
        names = [f"{case}/{file}" for case, file in zip(cases, slides.filename, strict=True)]
    else:
        names, cases = [*slides.filename], [Path(name).stem for name in slides.filename]
    return slides.assign(image=names, case=cases)[["image", "width", "height", "case"]]
