"""The annotation file of MIDOG++: MS COCO's JSON, but with boxes as corners.

Source: Aubreville et al., "A comprehensive multi-domain dataset for mitotic
figure detection", Sci Data 10:484, 2023; file databases/MIDOG++.json of
DeepMicroscopy/MIDOGpp. COCO boxes are x, y, width, height; these are
x0, y0, x1, y1, squares of 50 px around the cell. It lists 553 images; 151 to 200,
those of MIDOG 2021's fourth scanner, were never annotated.
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from midog.errors import UserError
from midog.evaluation.provenance import domain_of
from midog.files import read_json
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, meaning

logger = logging.getLogger(__name__)

NEVER_ANNOTATED = range(151, 201)


def read_midogpp(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the annotated images and the labelled cells of MIDOG++; images that nobody annotated are counted in the log.

    Args:
        path: the JSON file.

    Returns:
        images: DataFrame (image, width, height, case, tumor, laboratory, scanner), one row an image.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a cell, in px of the image.

    Raises:
        UserError: not such a file, an unknown class.
    """
    source = read_json(path, "download it again")
    try:
        labels = {category["id"]: meaning(category["name"]) for category in source["categories"]}
        unknown = [each["name"] for each in source["categories"] if labels[each["id"]] not in (MITOTIC, HARD_NEGATIVE)]
        names = {image["id"]: image["file_name"] for image in source["images"]}
        images = pd.DataFrame([_image(image) for image in source["images"]])
        figures = pd.DataFrame(
            [_figure(each, names, labels) for each in source["annotations"]],
            columns=["image", "x", "y", "x0", "y0", "x1", "y1", "label"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: images, categories and annotations as in MIDOG++.json expected ({error!r}); download it again"
        ) from None
    if unknown:
        raise UserError(f"{path}: category {unknown[0]!r} is unknown; mitotic or not mitotic figure expected")
    bare = images.image.map(_number).isin(NEVER_ANNOTATED) & ~images.image.isin(figures.image)
    if bare.any():
        names_of_bare = sorted(images.image[bare])
        logger.info(
            f"{path}: never annotated and not in the official download, left out: {bare.sum()} of {len(images)} images "
            f"({names_of_bare[0]} to {names_of_bare[-1]})"
        )
    return images[~bare].reset_index(drop=True), figures


def _number(name: str) -> int:
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() else 0


def _image(image: dict[str, Any]) -> dict[str, Any]:
    case = f"MIDOGpp_{Path(image['file_name']).stem}"
    tumor, laboratory, scanner = domain_of("midogpp", case)
    return {
        "image": image["file_name"],
        "width": image["width"],
        "height": image["height"],
        "case": case,
        "tumor": image.get("tumor_type", tumor),
        "laboratory": laboratory,
        "scanner": scanner,
    }


def _figure(
    annotation: dict[str, Any], names: dict[int, str], labels: dict[int, str]
) -> tuple[str, float, float, float, float, float, float, str]:
    x0, y0, x1, y1 = map(float, annotation["bbox"])
    centre = (x0 + x1) / 2, (y0 + y1) / 2
    return names[annotation["image_id"]], *centre, x0, y0, x1, y1, labels[annotation["category_id"]]
