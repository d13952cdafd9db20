"""PNG and JPEG, by Pillow, decoded whole."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from midog.images.level import ArrayLevel, Image, check_whole, conversions, depth_table

if TYPE_CHECKING:
    import PIL.Image

ORIENTATION = 0x0112  # EXIF's tag
QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height


def open_picture(path: Path) -> Image:
    """The picture as its EXIF orientation says, which viewers and OpenCV obey as well."""
    import PIL.Image
    from PIL import ImageOps

    PIL.Image.MAX_IMAGE_PIXELS = None  # the size is checked here
    with PIL.Image.open(path, formats=("PNG", "JPEG")) as file:
        check_whole(*file.size)
        dpi = file.info.get("dpi", (0, 0))
        image: PIL.Image.Image = file
        orientation = _orientation(file)
        if orientation != 1:
            image = ImageOps.exif_transpose(file)
        if orientation in QUARTER_TURNS:
            dpi = dpi[::-1]
        bits = 16 if image.mode.startswith("I") else 8
        remarks = conversions(bits, len(image.getbands()), image.mode == "P") if image.mode != "CMYK" else ["CMYK"]
        if bits == 8 and image.mode != "RGB":
            image = image.convert("RGB")
        spacings = [(25400 / float(dpi[0]), 25400 / float(dpi[1]))] if all(dpi) else []
        return Image([ArrayLevel(np.asarray(image), depth_table(bits))], spacings, remarks=remarks)


def _orientation(image: "PIL.Image.Image") -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF around a sound picture
        return 1
