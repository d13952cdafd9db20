"""Labelled cells as published: those listed twice, those in both classes, and annotations that are no cell."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from midog.errors import UserError
from resources.data.class_names import UNCLEAR

logger = logging.getLogger(__name__)

HALF_BOX_PX = 25  # the data sets' own files draw squares of 50 px around points
MAX_SIDE_PX = 200  # a cell is no wider; x, y, width, height read as corners give wider or negative boxes
SAME_PX = 10  # between two places of one cell; two cells are farther apart


def no_cells() -> pd.DataFrame:
    """The table of cells of a set that has none."""
    places = dict.fromkeys(("x", "y", "x0", "y0", "x1", "y1"), pd.Series(dtype=float))
    return pd.DataFrame({"image": pd.Series(dtype=str), **places, "label": pd.Series(dtype=str)})


def boxes_around(figures: pd.DataFrame) -> pd.DataFrame:
    """Cells that are points (columns x and y, px), with the corners x0, y0, x1, y1 of squares of 50 px around them."""
    return figures.assign(
        x0=figures.x - HALF_BOX_PX, y0=figures.y - HALF_BOX_PX, x1=figures.x + HALF_BOX_PX, y1=figures.y + HALF_BOX_PX
    )


def checked_cells(source: Path, figures: pd.DataFrame) -> pd.DataFrame:
    """Every cell once. What is left out or changed is told, one line a kind.

    An annotation of more than 200 px is left out. Places of one image that are 10 px apart at most are one cell, and
    the first of them stays; where they say both classes, it is unclear, and an unclear one yields to a class.

    Args:
        source: of the labels, for messages.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label, ...), px of the image; label as in `class_names`.

    Returns:
        the rows that stay, in their order.

    Raises:
        UserError: a box whose corners are not in order, or most are more than 200 px wide.
    """
    return _once(source, _of_a_cell(source, figures).reset_index(drop=True))


def _of_a_cell(source: Path, figures: pd.DataFrame) -> pd.DataFrame:
    sides = np.stack([figures.x1 - figures.x0, figures.y1 - figures.y0])
    wrong, large = (sides <= 0).any(0), (sides > MAX_SIDE_PX).any(0)
    if wrong.any() or large.sum() > len(figures) / 2:
        first = figures[wrong if wrong.any() else large].iloc[0]
        box = [float(first[corner]) for corner in ("x0", "y0", "x1", "y1")]
        raise UserError(
            f"{source}: box {box} on {first.image} is not x0, y0, x1, y1 of a cell; "
            "corners are expected, not width and height"
        )
    if large.any():
        logger.warning(
            f"{source}: annotations of more than {MAX_SIDE_PX} px, left out: {_counted(figures[large])}",
        )
    return figures[~large]


def _once(source: Path, figures: pd.DataFrame) -> pd.DataFrame:
    first = _first_of_cell(figures)
    told = figures.label.where(figures.label != UNCLEAR).groupby(first)
    in_both = (told.nunique() > 1).reindex(first).to_numpy()
    kept = first == np.arange(len(figures))
    again = ~kept & ~in_both
    if again.any():
        logger.warning(f"{source}: cells listed twice, taken once: {_counted(figures[again])}")
    if in_both.any():
        logger.warning(f"{source}: cells in both classes, taken as {UNCLEAR}: {_counted(figures[kept & in_both])}")
    label = told.first().reindex(first).fillna(UNCLEAR).to_numpy()
    return figures.assign(label=np.where(in_both, UNCLEAR, label))[kept].reset_index(drop=True)


def _first_of_cell(figures: pd.DataFrame) -> NDArray[np.int_]:
    """For each row, int (N,), the first row that is the same cell."""
    places, first = figures[["x", "y"]].to_numpy(float), np.arange(len(figures))
    for rows in figures.groupby("image").indices.values():
        pairs = KDTree(places[rows]).query_pairs(SAME_PX, output_type="ndarray")
        near = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
        groups = connected_components(near, directed=False)[1]
        first[rows] = rows[np.unique(groups, return_index=True)[1][groups]]
    return first


def _counted(cells: pd.DataFrame) -> str:
    first = cells.iloc[0]
    return f"{len(cells)}, the first on {first.image} at {first.x:g}, {first.y:g}"
