"""PNG and JPEG, by Pillow: one segment, decoded when it is read."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.images.level import Cache, GridLevel, Image, conversions, depth_table, to_rgb

if TYPE_CHECKING:
    import PIL.Image

ORIENTATION = 0x0112  # EXIF's tag
QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height


def open_picture(path: Path, cache: Cache) -> Image:
    """The picture as its EXIF orientation says, which viewers and OpenCV obey as well."""
    with _opened(path) as file:
        size, dpi, mode, channels = file.size, file.info.get("dpi", (0, 0)), file.mode, len(file.getbands())
        if _orientation(file) in QUARTER_TURNS:
            size, dpi = size[::-1], dpi[::-1]
    remarks = conversions(_bits(mode), channels, mode == "P") if mode != "CMYK" else ["CMYK"]
    spacings = [(25400 / float(dpi[0]), 25400 / float(dpi[1]))] if all(dpi) else []
    return Image([GridLevel(path, size, size, lambda _: _decode(path), cache)], spacings, remarks=remarks)


def _opened(path: Path) -> "PIL.Image.Image":
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = None  # the level checks the size
    return PIL.Image.open(path, formats=("PNG", "JPEG"))


def _decode(path: Path) -> NDArray[np.uint8]:
    from PIL import ImageOps

    with _opened(path) as file:
        image = file if _orientation(file) == 1 else ImageOps.exif_transpose(file)
        bits = _bits(image.mode)
        if bits == 8 and image.mode != "RGB":
            image = image.convert("RGB")
        return to_rgb(np.asarray(image), depth_table(bits))


def _bits(mode: str) -> int:
    """Of a channel, by Pillow's name of the kind of pixels."""
    return 16 if mode.startswith("I") else 8


def _orientation(image: "PIL.Image.Image") -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF around a sound picture
        return 1
