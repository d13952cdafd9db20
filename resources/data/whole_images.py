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
from resources.data.class_names import HARD_NEGATIVE, MITOTIC
from resources.data.fields import labels_inside

logger = logging.getLogger(__name__)

FIGURE_COLUMNS = ["image", "x", "y", "x0", "y0", "x1", "y1", "label", "case", "um_per_px"]


def write_tables(images: pd.DataFrame, figures: pd.DataFrame, folder: Path, out: Path, um_per_px: float) -> None:
    """Write OUT/figures.csv and, last, OUT/images.csv.

    Args:
        images: DataFrame (image, width, height, case, ...), one row an image; further columns go into images.csv.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), px of the image; label as in `class_names`.
        folder: where the images are; `image` is relative to it.
        out: the folder to write.
        um_per_px: of images that do not tell theirs.

    Raises:
        UserError: a labelled image is missing, or cannot be read, or has another size than its labels are for; two
            images of one name; `out` has tables.
    """
    if (out / "images.csv").exists():
        raise UserError(f"{out}: has images.csv already; give another --out")
    check_writable(out)
    images = _present(images, figures, folder)
    if images.image.duplicated().any():
        first = images.image[images.image.duplicated()].iloc[0]
        raise UserError(f"{first}: two images of this name, by which labels know theirs")
    by_image = dict(list(figures.groupby("image")))
    rows, labels = [], []
    for row in tqdm(images.to_dict("records"), "images", disable=None):
        path = folder / row["image"]
        known, inside = _opened(path, row, by_image.get(row["image"], figures[:0]), um_per_px)
        name = Path(os.path.relpath(path, out)).as_posix()
        rows.append(row | known | {"image": name})
        labels.append(inside.assign(image=name, case=row["case"], um_per_px=known["um_per_px"]))
    table = pd.concat(labels)[FIGURE_COLUMNS]
    write_with(out / "figures.csv", lambda part: table.to_csv(part, index=False))
    write_with(out / "images.csv", lambda part: pd.DataFrame(rows).to_csv(part, index=False))
    logger.info(
        f"{out}: {len(rows)} images; {(table.label == MITOTIC).sum()} mitotic figures and "
        f"{(table.label == HARD_NEGATIVE).sum()} hard negatives"
    )


def _present(images: pd.DataFrame, figures: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The images that are there; those that are not, and have no label either, are left out and counted."""
    absent = np.array([not (folder / name).is_file() for name in images.image])
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
    with open_slide(path, default_um_per_px=um_per_px) as slide:
        size, spacing = slide.size, round(float(np.mean(slide.um_per_px)), 6)
    inside = labels_inside(path, size, (row["width"], row["height"]), figures)
    return {"width": size[0], "height": size[1], "um_per_px": spacing}, inside
