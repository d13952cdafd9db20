"""Labelled regions and whole slides as they are -> the tables that training and evaluation read.

Nothing is cut or copied: `images.csv` names the files where they lie, and training reads its windows from them.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from midog.errors import UserError
from midog.files import check_writable, write_with
from midog.images.slide import open_slide
from resources.data.cells import checked_cells
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, UNCLEAR
from resources.data.fields import labels_inside
from resources.data.unpacked import located

logger = logging.getLogger(__name__)

FIGURE_COLUMNS = ["image", "x", "y", "x0", "y0", "x1", "y1", "label", "case", "um_per_px"]


def write_tables(
    images: pd.DataFrame, figures: pd.DataFrame, folder: Path, out: Path, labels: Path, um_per_px: float = 0.25
) -> None:
    """Write OUT/figures.csv and, last, OUT/images.csv.

    Args:
        images: DataFrame (image, case, ...), one row an image. width and height, where known, are those that the labels
            are for; um_per_px, where known, is what its publication says, whatever the file says; further columns go
            into images.csv.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label and perhaps score), px of the image; label as in
            `class_names`.
        folder: where the images are, or below; `image` is their names or the last parts of their paths.
        out: the folder to write.
        labels: the file or folder that the labels are from, for messages.
        um_per_px: of images that do not tell theirs.

    Raises:
        UserError: a labelled image is missing, or cannot be read, or has another size than its labels are for; two
            images of one name; boxes that are no cells; `out` has tables.
    """
    if (out / "images.csv").exists():
        raise UserError(f"{out}: has images.csv already; give another --out")
    check_writable(out)
    figures = checked_cells(labels, figures)
    paths = located(folder, images.image)
    images = _present(images, figures, folder, paths)
    if images.image.duplicated().any():
        first = images.image[images.image.duplicated()].iloc[0]
        raise UserError(f"{first}: two images of this name, by which labels know theirs")
    by_image = dict(list(figures.groupby("image")))
    rows, cells = [], []
    for row in tqdm(images.to_dict("records"), "images", disable=None):
        path = paths[row["image"]]
        known, inside = _opened(path, row, by_image.get(row["image"], figures[:0]), um_per_px)
        name = Path(os.path.relpath(path, out)).as_posix()
        rows.append(row | known | {"image": name})
        cells.append(inside.assign(image=name, case=row["case"], um_per_px=known["um_per_px"]))
    columns = [*FIGURE_COLUMNS, *(["score"] if "score" in figures else [])]
    table = pd.concat(cells)[columns]
    write_with(out / "figures.csv", lambda part: table.to_csv(part, index=False))
    write_with(out / "images.csv", lambda part: pd.DataFrame(rows).to_csv(part, index=False))
    unclear = (table.label == UNCLEAR).sum()
    logger.info(
        f"{out}: {len(rows)} images; {(table.label == MITOTIC).sum()} mitotic figures and "
        f"{(table.label == HARD_NEGATIVE).sum()} hard negatives" + f", {unclear} unclear" * bool(unclear)
    )


def _present(images: pd.DataFrame, figures: pd.DataFrame, folder: Path, paths: dict[str, Path]) -> pd.DataFrame:
    """The images that are there; those that are not, and have no label either, are left out and counted."""
    absent = np.array([not paths[name].is_file() for name in images.image], bool)
    labelled = images.image.isin(figures.image).to_numpy()
    if (absent & labelled).any():
        first = images.image[absent & labelled].iloc[0]
        more = (absent & labelled).sum() - 1
        raise UserError(f"{folder / first}: not found (nor {more} more); check the folder of images")
    if absent.all():
        raise UserError(f"{folder}: none of {len(images)} images is there; check the folder of images")
    if absent.any():
        logger.info("%s: not there and without labels, left out: %d of %d images", folder, absent.sum(), len(images))
    return images[~absent]


def _opened(
    path: Path, row: dict[str, Any], figures: pd.DataFrame, um_per_px: float
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What an image itself says (width, height, um_per_px), and the labels on it; those beside it are told."""
    with open_slide(path, row.get("um_per_px"), default_um_per_px=um_per_px) as slide:
        size, spacing = slide.size, round(float(np.mean(slide.um_per_px)), 6)
    inside = labels_inside(path, size, (row.get("width", 0), row.get("height", 0)), figures)
    return {"width": size[0], "height": size[1], "um_per_px": spacing}, inside
