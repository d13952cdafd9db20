"""Necrosis of SPIDER: patches of several organs, without annotated figures.

Source: Nechaev, Pchelnikov and Ivanova, "SPIDER: a comprehensive multi-organ supervised pathology dataset", arXiv
2503.02876. An organ unpacks to SPIDER-ORGAN/metadata.json, a list of records of class, slide_id, image_name,
context_info and split, and SPIDER-ORGAN/images, patches of 224 x 224 px at x20. Only the patch in the middle has a
class, so that the 24 around it are not read. The archives want a login; the names are those of a reader for them and
could not be confirmed by a download.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from midog.errors import UserError
from midog.files import read_json
from resources.data.cells import no_cells
from resources.data.unpacked import check_folder

UM_PER_PX = 0.5  # x20
CLASS = re.compile("necro", re.IGNORECASE)


def read_spider(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the patches of necrosis.

    Args:
        source: the folder that one or several organs were unpacked to.

    Returns:
        images: DataFrame (image, case, slide, split, um_per_px, tumor), one row a patch; the case is the slide.
        figures: without rows.

    Raises:
        UserError: no metadata.json, one that is damaged, or none of its classes is necrosis.
    """
    check_folder(source)
    tables = sorted(source.rglob("metadata.json"))
    if not tables:
        raise UserError(f"{source}: no metadata.json below it; unpack SPIDER's archives there")
    images: list[dict[str, Any]] = []
    classes: set[str] = set()
    for path in tables:
        organ = path.parent.name.removeprefix("SPIDER-")
        try:
            for each in read_json(path, "download it again"):
                classes.add(each["class"])
                if CLASS.search(each["class"]):
                    image = path.parent / "images" / each["image_name"]
                    slide = f"SPIDER_{organ}_{each.get('slide_id', Path(each['image_name']).stem)}"
                    images.append(
                        {
                            "image": image.relative_to(source).as_posix(),
                            "case": slide,
                            "slide": slide,
                            "split": each.get("split", ""),
                            "um_per_px": UM_PER_PX,
                            "tumor": f"human {organ} necrosis",
                        }
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: records of class, slide_id, image_name and split expected ({error!r}); download it again"
            ) from None
    if not images:
        raise UserError(f"{source}: none of the classes is necrosis: {', '.join(sorted(classes)[:10]) or 'no record'}")
    return pd.DataFrame(images), no_cells()
