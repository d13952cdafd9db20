"""TIFF, by tifffile with imagecodecs: pyramids and regions, the pages of a stack, where the spacing stands.

A new dialect belongs here: which pages make its pyramid in `_pyramid`, where its um/px stand in `_spacings`, how its
colours become RGB in `_level`.
"""

import logging
import re
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.images.level import (
    ArrayLevel,
    Cache,
    GridLevel,
    Image,
    Level,
    Page,
    UnsupportedError,
    conversions,
    depth_table,
    to_rgb,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MINISWHITE, PALETTE, YCBCR = 0, 3, 6
GREY_OR_RGB = {MINISWHITE, 1, 2, PALETTE}
PILLOW_MODES = {5: "CMYK", YCBCR: "YCbCr", 8: "LAB"}  # tifffile leaves these colours as they are
JPEG = {6, 7, 34892, 33007}  # whose decoder makes YCbCr RGB
APERIO_YCBCR = 33003
UM_PER_UNIT = {2: 25400.0, 3: 10000.0}
UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}

# The library's complaint about a file is one line of ours, not a log record on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(path: Path, cache: Cache) -> Image:
    """The first image of a TIFF, with its pyramid."""
    import tifffile

    tif = tifffile.TiffFile(path)
    try:
        page = tif.pages.first
        _check(page)
        if mode := _pillow_mode(page):
            raise UnsupportedError(f"the colour model {mode} is not read")
        pyramid, several = _pyramid(tif)
        levels = [_level(path, tif, planes, cache) for planes in pyramid]
        remarks = ["several pages of one size, only the first is read"] if several else []
        channels = page.samplesperpixel if len(pyramid[0]) == 1 else len(pyramid[0])
        remarks += conversions(page.bitspersample, channels, page.photometric == PALETTE)
        return Image(levels, _spacings(tif), remarks=remarks, close=tif.close)
    except Exception:
        tif.close()
        raise


def read_spacings(path: Path) -> list[tuple[float, float]]:
    """(x, y) um/px as the file says, unchecked, the most trusted first."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        return _spacings(tif)


def first_page(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) px of the first page, and whether another one of this size follows."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        first, second = tif.pages.first, islice(tif.pages, 1, 2)
        return (first.imagewidth, first.imagelength), any(page.shape == first.shape for page in second)


def read_pages(path: Path) -> Iterator[Page]:
    """Every page of a stack, one after the other; a page is to be read before the next one is asked for."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        for page in _walk(tif):
            _check(page)
            size = page.imagewidth, page.imagelength
            has_alpha = page.samplesperpixel in (2, 4) and page.photometric not in PILLOW_MODES
            yield Page(size, page.bitspersample, has_alpha, partial(_read_page, path, tif, page, size))


def _read_page(path: Path, tif: "TiffFile", page: "TiffPage", size: tuple[int, int]) -> NDArray[np.uint8]:
    return _level(path, tif, [page], Cache()).read(0, 0, *size)


def _walk(tif: "TiffFile") -> Iterator["TiffPage"]:
    """The pages; tifffile's own list grows with them, and ends in silence where the file is damaged."""
    import tifffile

    layout, file = tif.tiff, tif.filehandle
    page, visited = tif.pages.first, set()
    while True:
        yield page
        visited.add(page.offset)
        file.seek(page.offset)
        (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        file.seek(tags * layout.tagsize, 1)
        (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
        if following == 0 or following in visited:
            return
        file.seek(following)
        page = tifffile.TiffPage(tif, index=len(visited))


def _check(page: "TiffPage") -> None:
    numbers = page.imagewidth, page.imagelength, page.samplesperpixel, page.bitspersample, page.rowsperstrip
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("a tag that is one number has several")
    if page.dtype is None or page.dtype.kind not in "ub" or page.bitspersample > 16:
        raise UnsupportedError(f"pixels of type {page.dtype}, 8- or 16-bit unsigned expected")
    known = page.photometric in GREY_OR_RGB or page.photometric in PILLOW_MODES
    if not known or page.compression == APERIO_YCBCR or page.imagedepth > 1:
        raise UnsupportedError(f"the colour model {getattr(page.photometric, 'name', page.photometric)} is not read")


def _pillow_mode(page: "TiffPage") -> str | None:
    """Pillow's name for the colours, where they come out of the decoder as neither grey nor RGB."""
    if page.photometric == YCBCR and page.compression in JPEG:
        return None
    return PILLOW_MODES.get(page.photometric)


def _pyramid(tif: "TiffFile") -> tuple[list[list["TiffPage"]], bool]:
    """The pages of each level, largest first (three where each is one colour); whether there is a second image."""
    first = tif.pages.first
    planes: list[Any] = [first]
    if tif.is_ome and first.samplesperpixel == 1:
        series = tif.series[0]
        if series.axes.startswith("C") and series.shape[0] == 3:
            planes = list(series.pages)[:3]
    candidates = [[plane.pages[index] for plane in planes] for index in range(len(first.subifds or ()))]
    several = False
    for page in islice(tif.pages, len(planes), None):
        several = page.shape == first.shape
        if several:
            break
        candidates.append([page])
    pyramid = [planes]
    for planes in candidates:
        page, last = planes[0], pyramid[-1][0]
        if min(page.imagewidth, page.imagelength) < 1:
            continue
        x, y = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
        same_field = abs(x / y - 1) < 0.01 and (page.is_tiled or page.is_reduced)  # no label, no view of the glass
        same_kind = (page.dtype, page.samplesperpixel) == (first.dtype, first.samplesperpixel)
        if same_field and same_kind and page.imagewidth < last.imagewidth and len(planes) == len(pyramid[0]):
            pyramid.append(planes)
    return pyramid, several


def _level(path: Path, tif: "TiffFile", planes: Sequence["TiffPage"], cache: Cache) -> Level:
    """One level out of a page, or out of three that are one colour each."""
    page = planes[0]
    size = page.imagewidth, page.imagelength
    mode, table = _pillow_mode(page), _table(page)
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    if page.is_memmappable and len(planes) == 1 and mode is None:
        dtype = np.dtype(page.dtype).newbyteorder(tif.byteorder)
        mapped = np.memmap(path, dtype, "r", page.dataoffsets[0], page.shape)
        return ArrayLevel(np.moveaxis(mapped, 0, -1) if separate else mapped, table)

    def decode(index: int) -> NDArray[np.uint8] | None:
        parts = []
        for plane, first in sources:
            offset, count = plane.dataoffsets[first + index], plane.databytecounts[first + index]
            if count == 0:
                return None
            tif.filehandle.seek(offset)
            data = tif.filehandle.read(count)
            decoded = plane.decode(data, first + index, jpegtables=plane.jpegtables)[0]
            if decoded is None:
                raise ValueError("no pixels")
            parts.append(decoded[0])
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return to_rgb(pixels, table) if mode is None else _by_pillow(pixels, mode)

    segment = (page.tilewidth, page.tilelength) if page.is_tiled else (size[0], min(page.rowsperstrip, size[1]))
    level = GridLevel(path, size, segment, decode, cache)
    segments = level.columns * level.rows
    sources = [(plane, 0) for plane in planes]
    if separate:
        channels = range(page.samplesperpixel)[: 3 if mode is None else None]
        sources = [(page, channel * segments) for channel in channels]
    for plane, first in sources:
        offsets = np.array(plane.dataoffsets[: first + segments], np.int64)
        counts = np.array(plane.databytecounts[: first + segments], np.int64)
        if len(offsets) < first + segments or len(counts) < first + segments:
            raise ValueError(f"{len(offsets)} of {first + segments} pieces are listed")
        if (offsets + counts).max() > tif.filehandle.size:
            raise ValueError("the file ends before its pixels do")
    return level


def _table(page: "TiffPage") -> NDArray[np.uint8] | None:
    """The 8-bit grey or RGB of each value, None where that is the value."""
    if page.photometric == PALETTE:
        if page.colormap is None:
            raise ValueError("no colour map")
        return np.ascontiguousarray(page.colormap.T >> 8).astype(np.uint8)
    table = depth_table(page.bitspersample)
    if page.photometric == MINISWHITE:
        return 255 - (np.arange(256, dtype=np.uint8) if table is None else table)
    return table


def _by_pillow(pixels: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """8-bit (H, W, C) of another colour model -> uint8 (H, W, 3) RGB."""
    import PIL.Image

    if pixels.dtype != np.uint8:
        raise ValueError(f"{mode} of type {pixels.dtype}")
    image = PIL.Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes(), "raw", mode)
    return np.asarray(image.convert("RGB"))


def _spacings(tif: "TiffFile") -> list[tuple[float, float]]:
    """um/px by the resolution tags (which is what SimpleITK takes), by OME-XML, by Aperio's description."""
    page = tif.pages.first
    spacings = []
    unit = UM_PER_UNIT.get(page.tags.valueof("ResolutionUnit", 2))
    (x, per_x), (y, per_y) = (page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY")
    if unit and x and y:
        spacings.append((unit * per_x / x, unit * per_y / y))
    text = page.description
    if tif.is_ome and (pixels := re.search(r"<(?:\w+:)?Pixels\s[^>]*>", text)):
        found = dict(re.findall(r'(PhysicalSize[XY](?:Unit)?)="([^"]*)"', pixels[0]))
        if {"PhysicalSizeX", "PhysicalSizeY"} <= found.keys():
            units = [UM.get(found.get(f"PhysicalSize{axis}Unit", "µm"), 0.0) for axis in "XY"]
            spacings.append((float(found["PhysicalSizeX"]) * units[0], float(found["PhysicalSizeY"]) * units[1]))
    elif mpp := re.search(r"\bMPP *= *([\d.]+)", text):
        spacings.append((float(mpp[1]), float(mpp[1])))
    return spacings
