"""ICPR 2012's mitosis contest: fields of five slides on two scanners, the pixels of each figure as one line of a csv.

Source: Roux et al., "Mitosis detection in breast cancer histological images", J Pathol Inform 2013;4:8. A field is
A00_01.bmp (Aperio) or H00_01.bmp (Hamamatsu), with a csv and a JPEG of its name. In the JPEG the figures are painted
over, so that it is never read.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from midog.errors import UserError
from midog.evaluation.provenance import BREAST, PARIS, PARIS_SCANNERS
from resources.data.class_names import MITOTIC
from resources.data.unpacked import files_by_stem, split_of

logger = logging.getLogger(__name__)

FIELD = r"[AH]\d\d_\d\d"
SUFFIXES = (".bmp", ".tif", ".tiff", ".png")
UM_PER_PX = {"A": 0.2456, "H": 0.2274}  # the Hamamatsu has .2273 by .22753
ATYPIA_GLASS = ("03", "04")  # slides that are cases of MITOS-ATYPIA 14, too


def read_icpr2012(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the fields and the figures; a field without csv has no row, for its figures are not known.

    Args:
        source: the folder that the archives were unpacked to. Names of directories with "train", and with "test" or
            "eval", say the split.

    Returns:
        images: DataFrame (image, case, slide, split, um_per_px, tumor, laboratory, scanner), one row a field.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a figure: the mean of its pixels and the box
            around them.

    Raises:
        UserError: no csv of a field, or one that does not hold pixels.
    """
    tables = files_by_stem(source, (".csv",), FIELD)
    if not tables:
        raise UserError(f"{source}: no A00_01.csv or H00_01.csv below it; unpack the archives of ICPR 2012 there")
    fields = files_by_stem(source, SUFFIXES, FIELD)
    bare = fields.keys() - tables.keys()
    if bare:
        logger.info(f"{source}: fields without csv, left out: {len(bare)} of {len(fields)}, the first {min(bare)}")
    images: list[dict[str, Any]] = []
    figures: list[tuple[Any, ...]] = []
    for stem, path in tables.items():
        field = fields.get(stem, path.with_suffix(".bmp"))
        image = field.relative_to(source).as_posix()
        figures += [(image, *cell, MITOTIC) for cell in _figures(path)]
        scanner, slide = stem[0], stem[1:3]
        images.append(
            {
                "image": image,
                "case": scanner + slide,
                "slide": f"Paris {slide}" if slide in ATYPIA_GLASS else f"Paris ICPR {slide}",
                "split": split_of(field, source),
                "um_per_px": UM_PER_PX[scanner],
                "tumor": BREAST,
                "laboratory": PARIS,
                "scanner": PARIS_SCANNERS[scanner],
            }
        )
    columns = ["image", "x", "y", "x0", "y0", "x1", "y1", "label"]
    return pd.DataFrame(images), pd.DataFrame(figures, columns=columns)


def _figures(path: Path) -> list[tuple[float, ...]]:
    """x, y, x0, y0, x1, y1 of each line of a csv; pixels have their centres at integers."""
    cells = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, 1):
            values = [float(each) for each in line.replace(";", ",").split(",") if each.strip()]
            if len(values) % 2:
                raise UserError(f"{path}: line {number}: {len(values)} numbers, pairs x,y expected; download it again")
            if values:
                pixels = np.array(values).reshape(-1, 2)
                low, high = pixels.min(0) - 0.5, pixels.max(0) + 0.5
                cells.append((*map(float, pixels.mean(0).round(1)), *map(float, low), *map(float, high)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: lines of pixels x,y,x,y,... expected ({error}); download it again") from None
    return cells
