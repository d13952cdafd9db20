"""PNG, JPEG and BMP, by Pillow: one segment, decoded when it is read; PNG of 16 bits a sample by imagecodecs."""

import warnings
from collections.abc import Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.images.level import Cache, Depth, GridLevel, Image, check_whole, conversions, over_white, seen_depth, to_rgb
from midog.images.resolution import Spacing, of_axes, of_jfif, of_resolution_tags

if TYPE_CHECKING:
    import PIL.Image

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128  # EXIF's tags
QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height
TRANSPARENT = {"RGBA", "LA", "PA"}  # Pillow's modes
COLOURS = {"1": "grey", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
PNG_HEADER = slice(24, 26)  # the bytes that are bits a sample, and the kind of colours
GREY, GREY_ALPHA = 0, 4  # kinds of colours
SIGNIFICANT_BITS, PIXELS = b"sBIT", b"IDAT"  # chunks of a PNG


def open_picture(path: Path, cache: Cache) -> Image:
    """The picture as its EXIF orientation says, which viewers and OpenCV obey as well."""
    with _opened(path) as file:
        orientation, size, spacings, is_png = _orientation(file), file.size, _spacings(file), file.format == "PNG"
        colour, is_transparent = COLOURS.get(file.mode, "RGB"), _is_transparent(file)
    depth, decode = Depth(), partial(_decode, path)
    if is_png:
        with open(path, "rb") as stream:
            bits, kind = stream.read(PNG_HEADER.stop)[PNG_HEADER]
        if bits == 16:
            check_whole(*size)
            colour = "grey" if kind in (GREY, GREY_ALPHA) else "RGB"
            depth = _deep_depth(path)
            decode = partial(_decode_deep, path, depth)
    if orientation in QUARTER_TURNS:
        size = size[::-1]
        spacings = [Spacing(each.um_per_px[::-1], each.where) for each in spacings]
    level = GridLevel(path, size, size, lambda _: _turned(decode(), orientation), cache)
    return Image([level], spacings, remarks=conversions(depth, colour, "with alpha, shown on white" * is_transparent))


def _opened(path: Path) -> "PIL.Image.Image":
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = None  # the level checks the size
    return PIL.Image.open(path, formats=("PNG", "JPEG", "BMP"))


def _spacings(file: "PIL.Image.Image") -> list[Spacing]:
    """By EXIF, whose numbers have no limit; then by JFIF; of a PNG, by its pHYs chunk; a BMP's is not read."""
    if file.format == "PNG":
        x, y = file.info.get("dpi", (0, 0))
        return of_axes(25400 / x, 25400 / y, "the pHYs chunk") if x and y else []
    exif = _exif(file)
    unit, x, y = (exif.get(tag) for tag in (RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION))
    spacings = of_resolution_tags(unit, _plain(x), _plain(y))
    unit, density = file.info.get("jfif_unit", 0), file.info.get("jfif_density", (0, 0))
    return spacings + of_jfif(unit, *density)


def _plain(value: object) -> float:
    """A rational number of EXIF; 0 for what is none."""
    try:
        return float(value) if isinstance(value, Real) else 0.0
    except ArithmeticError:
        return 0.0


def _is_transparent(file: "PIL.Image.Image") -> bool:
    return file.mode in TRANSPARENT or "transparency" in file.info


def _decode(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of 8 bits a sample or less."""
    with warnings.catch_warnings(action="ignore"), _opened(path) as file:
        if not _is_transparent(file):
            return np.asarray(file if file.mode == "RGB" else file.convert("RGB"))
        pixels = np.asarray(file.convert("RGBA"))
    return over_white(to_rgb(pixels), pixels[..., 3])


def _decode_deep(path: Path, depth: Depth) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of 16 bits a sample."""
    pixels = _deep_pixels(path)
    rgb = to_rgb(pixels, depth.table)
    if pixels.shape[2] in (1, 3):
        return rgb
    return over_white(rgb, to_rgb(pixels[..., -1], depth.table)[..., 0])


def _deep_pixels(path: Path) -> NDArray[np.uint16]:
    """uint16 (H, W, C), of which the second or fourth channel is alpha; Pillow would drop the lower 8 bits."""
    import imagecodecs

    pixels = imagecodecs.png_decode(path.read_bytes())
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_depth(path: Path) -> Depth:
    """By the values; an sBIT chunk is a hint, as its standard wants the values scaled up to 16 bits."""
    pixels = _deep_pixels(path)
    seen = seen_depth(16, [pixels[..., : 3 if pixels.shape[2] >= 3 else 1]])
    head = path.read_bytes().partition(PIXELS)[0]
    _, chunk, said = head.partition(SIGNIFICANT_BITS)
    if chunk and said and seen.used <= said[0] < 16:
        return Depth(16, said[0], "sBIT")
    return seen


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """As EXIF says that the picture is to be seen."""
    if orientation in QUARTER_TURNS:
        pixels = pixels.swapaxes(0, 1)
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _orientation(image: "PIL.Image.Image") -> int:
    said = _exif(image).get(ORIENTATION, 1)
    return said if isinstance(said, int) else 1


def _exif(image: "PIL.Image.Image") -> "Mapping[int, Any]":
    try:
        return image.getexif()
    except Exception:  # damaged EXIF around a sound picture
        return {}
