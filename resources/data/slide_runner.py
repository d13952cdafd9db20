"""Databases of SlideRunner, as published with MITOS_WSI_CCMCT, MITOS_WSI_CMC, TUPAC16 and MIDOG++.

Source: Aubreville et al., "SlideRunner: a tool for massive cell annotations in
whole slide images", BVM 2018; the tables as DeepMicroscopy/SlideRunner makes
them (SlideRunner/dataAccess/database.py). A cell is one point in level-0
pixels, or the corners of a box; `agreedClass` is the experts' common class and
0 where they did not agree. Annotations deleted in the program stay in the file
and are marked; files of early versions lack the mark.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

from midog.errors import UserError
from resources.data.class_names import BACKGROUND, MITOTIC, UNCLEAR, meaning

logger = logging.getLogger(__name__)

POLYGON = 3  # of Annotations.type: outlines of tumor and regions, no cells
HALF_BOX_PX = 25  # the data sets' own COCO files draw 50 px squares around the points

SLIDES = """
SELECT filename AS image, COALESCE(width, 0) AS width, COALESCE(height, 0) AS height FROM Slides ORDER BY uid
"""
CELLS = """
SELECT Slides.filename AS image, Classes.name AS class,
       MIN(coordinateX) AS x0, MIN(coordinateY) AS y0, MAX(coordinateX) AS x1, MAX(coordinateY) AS y1
FROM Annotations
JOIN Annotations_coordinates ON Annotations_coordinates.annoId = Annotations.uid
JOIN Slides ON Slides.uid = Annotations.slide
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
        images: DataFrame (image, width, height, case), one row a slide; width and height 0 where it has none.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a cell, in level-0 px; label is one of
            `fields.CLASSES`, or UNCLEAR for cells without an agreed class. Cells of other kinds are left out.

    Raises:
        UserError: not such a database, or no mitotic figure in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give a .sqlite file of SlideRunner")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            columns = pd.read_sql("PRAGMA table_info(Annotations)", database).name.to_list()
            kept = "COALESCE(Annotations.deleted, 0) = 0" if "deleted" in columns else "TRUE"
            images = pd.read_sql(SLIDES, database)
            figures = pd.read_sql(CELLS.format(polygon=POLYGON, kept=kept), database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise UserError(f"{path}: not a database of SlideRunner ({error}); download it again") from None
    images["case"] = images.image.map(lambda name: Path(name).stem)
    figures["label"] = figures["class"].map(meaning, na_action="ignore").fillna(UNCLEAR)
    for (name, label), cells in figures.groupby(["class", "label"], dropna=False):
        told = name if isinstance(name, str) else "without agreement"
        logger.info(f"class {told!r}: {len(cells)} cells, taken as {label}")
    if MITOTIC not in set(figures.label):
        raise UserError(f"{path}: no mitotic figure in it; give one of the data set's databases of cells")
    figures = figures[figures.label != BACKGROUND].reset_index(drop=True)
    figures["x"], figures["y"] = (figures.x0 + figures.x1) / 2, (figures.y0 + figures.y1) / 2
    points = (figures.x0 == figures.x1) & (figures.y0 == figures.y1)
    for corner, side in (("x0", -1), ("y0", -1), ("x1", 1), ("y1", 1)):
        figures[corner] = figures[corner] + side * HALF_BOX_PX * points
    return images, figures[["image", "x", "y", "x0", "y0", "x1", "y1", "label"]]
