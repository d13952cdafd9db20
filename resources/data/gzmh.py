"""GZMH, the clinical set of FoCasNet's paper, in the format of Pascal VOC.

Source: Wang et al., Biomedical Signal Processing and Control 87:105374, 2024, and J Image Graphics 29(3):608, 2024, doi
10.11834/jig.230332: 55 slides of 22 patients of Ganzhou Municipal Hospital, cut into 1,534 fields of 2084 x 2084 px at
.25 um/px. The archive's layout could not be confirmed. Read is what the paper's code trains from: JPEGImages/NAME.*,
Annotations/NAME.xml with the boxes, and ImageSets/Main/trainval.txt and test.txt with the names of each part.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from midog.errors import UserError
from midog.evaluation.provenance import BREAST
from resources.data.class_names import BACKGROUND, meaning
from resources.data.unpacked import files_by_stem, split_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
UM_PER_PX = 0.25
LABORATORY, SCANNER = "Ganzhou Municipal Hospital", "KF-PRO-120"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = {"train": "train", "trainval": "train", "val": "train", "test": "test"}  # of ImageSets/Main


def read_gzmh(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the fields that have an annotation file, and their figures.

    Args:
        source: the folder that the archive was unpacked to. The split is as ImageSets/Main says, else as the names of
            directories.

    Returns:
        images: DataFrame (image, width, height, case, split, um_per_px, tumor, laboratory, scanner), one row a field.
            The case is the name up to its last underscore.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), one row a figure.

    Raises:
        UserError: no annotation file, or one that is damaged.
    """
    annotations = files_by_stem(source, (".xml",))
    if not annotations:
        raise UserError(f"{source}: no .xml below it; Annotations/NAME.xml of Pascal VOC are expected")
    fields, splits = files_by_stem(source, SUFFIXES), _splits(source)
    images: list[dict[str, Any]] = []
    figures: list[tuple[Any, ...]] = []
    for stem, path in annotations.items():
        field = fields.get(stem, path.with_suffix(".png"))
        image = field.relative_to(source).as_posix()
        width, height, cells = _annotation(path)
        figures += [(image, *cell) for cell in cells]
        images.append(
            {
                "image": image,
                "width": width,
                "height": height,
                "case": f"GZMH_{stem.rpartition('_')[0] or stem}",
                "split": splits.get(stem, split_of(field, source)),
                "um_per_px": UM_PER_PX,
                "tumor": BREAST,
                "laboratory": LABORATORY,
                "scanner": SCANNER,
            }
        )
    columns = ["image", "x", "y", "x0", "y0", "x1", "y1", "label"]
    return pd.DataFrame(images), pd.DataFrame(figures, columns=columns)


def _splits(source: Path) -> dict[str, str]:
    """`train` or `test` by the name of a field, of the lists of ImageSets/Main."""
    found: dict[str, str] = {}
    for name, split in LISTS.items():
        for path in sorted(source.rglob(f"ImageSets/Main/{name}.txt")):
            found |= dict.fromkeys(path.read_text(encoding="utf-8").split(), split)
    return found


def _annotation(path: Path) -> tuple[int, int, list[tuple[Any, ...]]]:
    """Width and height that a file tells, 0 where it does not, and x, y, x0, y0, x1, y1 and label of its cells."""
    cells: list[tuple[Any, ...]] = []
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        for each in root.iter("object"):
            label = meaning(each.findtext("name") or "")
            x0, y0, x1, y1 = (float(each.findtext(f"bndbox/{corner}") or "") for corner in CORNERS)
            if label != BACKGROUND:
                cells.append(((x0 + x1) / 2, (y0 + y1) / 2, x0, y0, x1, y1, label))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: not an annotation of Pascal VOC ({error}); download it again") from None
    return width, height, cells
