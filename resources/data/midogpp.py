"""The annotation file of MIDOG++: MS COCO's JSON, but with boxes as corners.

Source: Aubreville et al., "A comprehensive multi-domain dataset for mitotic
figure detection", Sci Data 10:484, 2023; file databases/MIDOG++.json of
DeepMicroscopy/MIDOGpp. COCO boxes are x, y, width, height; these are
x0, y0, x1, y1, squares of 50 px around the cell.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from midog.errors import UserError
from midog.files import read_json
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, meaning

MAX_SIDE_PX = 200  # a cell is no wider; x, y, width, height read as corners give wider or negative boxes


def read_midogpp(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the images and the labelled cells of MIDOG++.

    Args:
        path: the JSON file.

    Returns:
        images: DataFrame (image, width, height, case, and tumor where the file names it), one row an image.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a cell, in px of the image.

    Raises:
        UserError: not such a file, an unknown class, boxes that are no corners.
    """
    source = read_json(path, "download it again")
    try:
        labels = {category["id"]: meaning(category["name"]) for category in source["categories"]}
        unknown = [each["name"] for each in source["categories"] if labels[each["id"]] not in (MITOTIC, HARD_NEGATIVE)]
        names = {image["id"]: image["file_name"] for image in source["images"]}
        images = pd.DataFrame([_image(image) for image in source["images"]])
        figures = pd.DataFrame(
            [_figure(path, each, names, labels) for each in source["annotations"]],
            columns=["image", "x", "y", "x0", "y0", "x1", "y1", "label"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: images, categories and annotations as in MIDOG++.json expected ({error!r}); download it again"
        ) from None
    if unknown:
        raise UserError(f"{path}: category {unknown[0]!r} is unknown; mitotic or not mitotic figure expected")
    return images, figures


def _image(image: dict[str, Any]) -> dict[str, Any]:
    row = {
        "image": image["file_name"],
        "width": image["width"],
        "height": image["height"],
        "case": f"MIDOGpp_{Path(image['file_name']).stem}",
    }
    return row | ({"tumor": image["tumor_type"]} if "tumor_type" in image else {})


def _figure(
    path: Path, annotation: dict[str, Any], names: dict[int, str], labels: dict[int, str]
) -> tuple[str, float, float, float, float, float, float, str]:
    x0, y0, x1, y1 = map(float, annotation["bbox"])
    if not (0 < x1 - x0 <= MAX_SIDE_PX and 0 < y1 - y0 <= MAX_SIDE_PX):
        raise UserError(
            f"{path}: box {annotation['bbox']} of annotation {annotation.get('id')} is not x0, y0, x1, y1 of a cell; "
            "MIDOG++ has corners, not width and height"
        )
    centre = (x0 + x1) / 2, (y0 + y1) / 2
    return names[annotation["image_id"]], *centre, x0, y0, x1, y1, labels[annotation["category_id"]]
