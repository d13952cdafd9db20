"""TUPAC16's auxiliary set of mitotic figures with the alternative labels.

Source: Bertram, Veta, Marzahl and others, "Are pathologist-defined labels reproducible? Comparison of the TUPAC16
mitotic figure dataset with an alternative set of labels", LABELS 2020; DeepMicroscopy/TUPAC16_AlternativeLabels. Its
SlideRunner databases are for images that its notebook stitches, its folder TUPAC_AL for the images as TUPAC16 has them:
DIRECTORY/NUMBER.tif, a directory a patient, and csv files of the same names, one line a cell, y before x.
"""

import re
from pathlib import Path

import pandas as pd

from midog.errors import UserError, brief
from midog.evaluation.provenance import domain_of
from resources.data.cells import boxes_around
from resources.data.class_names import HARD_NEGATIVE, MITOTIC
from resources.data.slide_runner import read_slide_runner
from resources.data.unpacked import check_folder

LABELS = {"mitoses_ground_truth": MITOTIC, "nonmitoses_ground_truth": HARD_NEGATIVE}
SUFFIXES = (".tif", ".tiff")


def read_tupac16(source: Path, database: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the images and the cells.

    Args:
        source: the folder that images and labels were unpacked to.
        database: the SlideRunner file; without it the only one in `source`, and where there is none, or several beside
            TUPAC_AL, the csv files.

    Returns:
        images: DataFrame (image, case, tumor, laboratory, scanner), one row an image; the case is the patient. Of the
            csv files every image of their patients, for images without a cell have none.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), px of the image.

    Raises:
        UserError: neither database nor csv files, several databases alone, or one of them is damaged.
    """
    check_folder(source)
    databases = [database] if database else sorted(source.rglob("*.sqlite"))
    folders = {folder: label for name, label in LABELS.items() for folder in sorted(source.rglob(name))}
    if len(databases) == 1:
        images, figures = read_slide_runner(databases[0])
        named = images.image.where(images.image.str.contains("/"), images.image.map(lambda name: Path(name).stem))
        images["case"] = named.map(_patient)
    elif folders:
        images, figures = _of_csv(source, folders)
    else:
        found = ", ".join(path.name for path in databases) or "none"
        raise UserError(f"{source}: one .sqlite or TUPAC_AL expected, found {found}; name the file with --database")
    domains = pd.DataFrame(
        [domain_of("tupac16", case) for case in images.case],
        columns=["tumor", "laboratory", "scanner"],
        index=images.index,
    )
    return images.join(domains), figures


def _patient(name: str) -> str:
    """`TUPAC16_01` of 01/25.tif and of 01_stitched1; a name without number is a patient of its own."""
    number = re.search(r"\d+", name)
    return f"TUPAC16_{int(number[0]):02}" if number else name


def _of_csv(source: Path, folders: dict[Path, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    cells: list[tuple[str, float, float, str]] = []
    names: set[str] = set()
    for folder, label in folders.items():
        for path in sorted(folder.glob("*/*.csv")):
            image = f"{path.parent.name}/{path.stem}.tif"
            names.add(image)
            try:
                places = pd.read_csv(path, header=None, usecols=[0, 1]).to_numpy(float)
            except pd.errors.EmptyDataError:
                continue
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: lines of y, x expected ({brief(error)}); download it again") from None
            cells += [(image, x, y, label) for y, x in places]
    labelled = {Path(name).parent.name for name in names}
    names |= {
        f"{path.parent.name}/{path.name}"
        for path in source.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.parent.name in labelled
    }
    images = pd.DataFrame({"image": sorted(names)})
    figures = boxes_around(pd.DataFrame(cells, columns=["image", "x", "y", "label"]))
    return images.assign(case=images.image.map(_patient)), figures
