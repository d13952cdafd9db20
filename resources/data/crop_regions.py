"""Crops around labelled cells as small regions, each with the labels of all the cells that lie in it.

A crop is cut around one figure, and every figure of its image is labelled: so a crop is a piece of fully labelled
tissue, if the coordinates of the cells in their image are known (columns source_image, x and y). Where the image ended
inside a crop, it was filled with black, on the side of the end (the figure stays in the middle) or, by other programs,
on both sides (the tissue is in the middle, and the figure is not). Such rows and columns are left out.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from midog.evaluation.splits import Split
from midog.evaluation.tables import NON_MITOTIC, read_crop_table, select_images, split_selection
from midog.images.stack import CROP_UM_PER_PX
from resources.data.on_demand import OnDemandSlide

BLACK = 32  # grey levels; filled rows are not exactly 0 after JPEG
LIT = 0.1  # fraction of a row of tissue, at least, that is lighter


class CropRegion(NamedTuple):
    """A crop.

    Attributes:
        path, name, case, source: file, its name, its case, and the name of its folder.
        um_per_px: of both axes.
        part: (left, top, width, height) of the file that is tissue, px.
        figures, hard_negatives: float32 (N, 2), centres x, y of mitotic and non-mitotic cells in px of the part.
    """

    path: Path
    name: str
    case: str
    source: str
    um_per_px: float
    part: tuple[int, int, int, int]
    figures: NDArray[np.float32]
    hard_negatives: NDArray[np.float32]


def read_crop_regions(
    selection: str | Path, split: Split | None = None, folds: Collection[str] = ()
) -> list[CropRegion]:
    """The crops of DIR[:CASES], those of label -1 (non-mitotic cells) too; each is read once.

    Raises:
        UserError: no table, a column, a case or a crop is missing.
    """
    folder, cases = split_selection(selection)
    source = folder.resolve().name
    table = select_images(read_crop_table(folder, all_labels=True), cases, selection)
    if split:
        table = split.choose(table, source, folds)
    table = table.reset_index(drop=True)
    told = {"source_image", "x", "y"} <= set(table.columns)
    images = table.source_image if told else table.file
    places = table[["x", "y"]].to_numpy(np.float32) if told else np.zeros((len(table), 2), np.float32)
    mitotic = (table.label != NON_MITOTIC).to_numpy()
    rows_of = images.groupby(images).indices
    um_per_px = table.um_per_px.fillna(CROP_UM_PER_PX) if "um_per_px" in table else [CROP_UM_PER_PX] * len(table)
    crops = []
    rows = tqdm(zip(table.itertuples(), um_per_px, strict=True), f"{source}: opening", len(table), disable=None)
    for number, (row, spacing) in enumerate(rows):
        path = folder / row.file
        slide = OnDemandSlide(path, float(spacing))
        part = tissue_part(slide.read(0, 0, *slide.size))
        near = rows_of[images[number]]
        points = places[near] - places[number] + _own_cell(slide.size, part, places[number]) - np.array(part[:2])
        inside = ((points >= 0) & (points < part[2:])).all(1)
        cells, are_mitotic = points[inside].astype(np.float32), mitotic[near[inside]]
        crops.append(
            CropRegion(
                path, row.file, str(row.case), source, float(spacing), part, cells[are_mitotic], cells[~are_mitotic]
            )
        )
    return crops


def tissue_part(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """(left, top, width, height) without the black rows and columns at a crop's edges; all of it where it is black."""
    lit = pixels.max(2) >= BLACK
    edges = []
    for axis in (0, 1):
        seen = np.flatnonzero(lit.mean(axis) > LIT)
        edges.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, pixels.shape[1 - axis]))
    (left, right), (top, bottom) = edges
    return left, top, right - left, bottom - top


def _own_cell(
    size: tuple[int, int], part: tuple[int, int, int, int], place: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Where a crop's own cell is, float32 (2,) px of the file; `place` is where it was in its image."""
    centre = ((np.array(size) - 1) / 2).astype(np.float32)
    for axis, side in enumerate(size):
        first, length = part[axis], part[axis + 2]
        if first > 0 and first + length < side:  # filled on both sides: the cell was near an end of its image
            moved = (side - length) / 2
            centre[axis] += -moved if place[axis] < side / 2 else moved
    return centre
