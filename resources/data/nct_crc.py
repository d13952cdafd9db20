"""Debris of NCT-CRC-HE-100K: patches of human colorectal cancer, without annotated figures.

Source: Kather, Halama and Marx, "100,000 histological images of human colorectal cancer and healthy tissue", Zenodo
2018, doi 10.5281/zenodo.1214456: NCT-CRC-HE-100K/DEB/DEB-NAME.tif, 224 x 224 px at .5 um/px, one directory a class. It
names no patient, so that all patches could be of one: they stay on one side of every split.
"""

from pathlib import Path

import pandas as pd

from midog.errors import UserError
from resources.data.cells import no_cells
from resources.data.unpacked import check_folder

CLASS = "DEB"
UM_PER_PX = 0.5


def read_nct_crc(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the patches of debris.

    Args:
        source: the folder that the archive was unpacked to.

    Returns:
        images: DataFrame (image, case, slide, um_per_px, tumor, laboratory), one row a patch.
        figures: without rows.

    Raises:
        UserError: no patch in a directory DEB.
    """
    check_folder(source)
    paths = sorted(source.rglob(f"{CLASS}/*.tif"))
    if not paths:
        raise UserError(f"{source}: no {CLASS}/*.tif below it; unpack NCT-CRC-HE-100K.zip there")
    images = pd.DataFrame(
        {
            "image": [path.relative_to(source).as_posix() for path in paths],
            "case": [path.stem for path in paths],
            "slide": "NCT-CRC-HE-100K",
            "um_per_px": UM_PER_PX,
            "tumor": "human colorectal cancer",
            "laboratory": "Heidelberg and Mannheim",
        }
    )
    return images, no_cells()
