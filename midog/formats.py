"""How the pixels of each file format are reached: one function a format, every one giving an `Image`.

Nothing is decoded before it is asked for. A compressed file is a grid of segments
(tiles, or strips as wide as the image); those used last stay in a cache of a fixed
size. Uncompressed pixels are mapped. Only what has no segments (PNG, JPEG,
compressed `.mha`) is decoded whole, once, up to `WHOLE_BYTES`.

The errors of the libraries pass through here as they are; `midog.slide` turns
them into one line that names the file.
"""

import logging
import math
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from midog.errors import UserError, brief

CACHE_BYTES = 320 << 20  # four rows of 256 px segments, what a tile of 640 px touches, of a slide 100,000 px wide
WHOLE_BYTES = 1 << 30  # of pixels that can only be decoded in one piece

# A library's complaint about a file is one line of ours, not a log record on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("pydicom").addHandler(logging.NullHandler())


@dataclass
class Image:
    """What a format's function finds in a file.

    Attributes:
        levels: the pyramid, largest first; each has `size` (width, height) and
            `read(x, y, width, height)` -> uint8 (height, width, 3) in its own pixels.
        spacings: (x, y) um/px as the file says, unchecked, the most trusted first.
        origin_mm: (x, y) of the centre of the first pixel.
        remarks: what was changed on reading, a line each.
        close: releases the file.
    """

    levels: list
    spacings: list = field(default_factory=list)
    origin_mm: tuple = (0.0, 0.0)
    remarks: list = field(default_factory=list)
    close: Callable = lambda: None

    def __post_init__(self):
        width, height = self.levels[0].size
        if min(width, height) < 1:
            raise ValueError(f"{width} x {height} px")


def refused(path, reason):
    return UserError(f"{path}: {reason}; convert it to an 8-bit RGB TIFF in tiles")


def _check_whole(path, width, height):
    if width * height * 3 > WHOLE_BYTES:
        raise refused(path, f"{width} x {height} px are too many to decode in one piece")


# --- pixels -------------------------------------------------------------------


def to_rgb(pixels, table=None):
    """(H, W) or (H, W, C) of any kind, through its table of 8-bit values -> uint8 (H, W, 3); alpha is dropped."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if table is not None:
        pixels = np.take(table, pixels[..., 0] if table.ndim == 2 else pixels, axis=0)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def depth_table(bits):
    """uint8 (2 ** bits,): the 8-bit value of each value of `bits` bits; None where they are 8."""
    return None if bits == 8 else np.linspace(0, 255, 2**bits).round().astype(np.uint8)


def conversions(bits, channels, palette=False):
    """The remark on what becomes 8-bit RGB, in a list; empty for what is."""
    colour = "palette" if palette else {1: "grey", 2: "grey with alpha", 3: "RGB"}.get(channels, "RGB with alpha")
    return [] if (bits, colour) == (8, "RGB") else [f"{bits}-bit {colour}, read as 8-bit RGB"]


class ArrayLevel:
    """Pixels in memory or in a mapped file: (H, W) or (H, W, C)."""

    def __init__(self, array, table=None):
        self._array = array
        self._table = table
        self.size = array.shape[1], array.shape[0]

    def read(self, x, y, width, height):
        return to_rgb(self._array[y : y + height, x : x + width], self._table)


class Cache:
    """The segments used last, by key, up to `CACHE_BYTES`."""

    def __init__(self):
        self._kept = OrderedDict()
        self._bytes = 0

    def get(self, key, make):
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make()
        self._bytes += value.nbytes
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return value


class GridLevel:
    """Pixels in segments of one size, row by row, those at the right and lower edge cut or padded.

    Args:
        path: for messages.
        size, segment: (width, height) of the level and of a segment, px.
        decode: index of a segment -> uint8 (h, w, 3), or None for one the file leaves out.
        cache: shared by the levels of a file.
    """

    def __init__(self, path, size, segment, decode, cache):
        if min(segment) < 1:
            raise ValueError(f"pieces of {segment[0]} x {segment[1]} px")
        _check_whole(path, *segment)
        self._path = path
        self.size = size
        self._segment = segment
        self._decode = decode
        self._cache = cache
        self.columns, self.rows = (math.ceil(whole / part) for whole, part in zip(size, segment, strict=True))

    def read(self, x, y, width, height):
        pixels = np.empty((height, width, 3), np.uint8)
        across, down = self._segment
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                left, top = column * across, row * down
                x0, x1 = max(x, left), min(x + width, left + across)
                y0, y1 = max(y, top), min(y + height, top + down)
                segment = self._cache.get((id(self), row, column), lambda at=(row, column): self._checked(*at))
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return pixels

    def _checked(self, row, column):
        left, top = column * self._segment[0], row * self._segment[1]
        width, height = min(self._segment[0], self.size[0] - left), min(self._segment[1], self.size[1] - top)
        try:
            segment = self._decode(row * self.columns + column)
            if segment is None:  # scanners leave out glass
                return np.full((height, width, 3), 255, np.uint8)
            if segment.shape[0] < height or segment.shape[1] < width:
                raise ValueError(f"{segment.shape[1]} x {segment.shape[0]} px instead of {width} x {height}")
        except Exception as error:
            raise UserError(
                f"{self._path}: the pixels from x {left}, y {top} on cannot be decoded ({brief(error)}); "
                "the file is damaged, copy it again"
            ) from error
        return segment


# --- TIFF ---------------------------------------------------------------------

MINISWHITE, PALETTE, YCBCR = 0, 3, 6
PHOTOMETRIC = {MINISWHITE, 1, 2, PALETTE, YCBCR}
JPEG = {6, 7, 34892, 33007}
APERIO_YCBCR = 33003
UM_PER_UNIT = {2: 25400.0, 3: 10000.0}
UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}


def open_tiff(path):
    import tifffile

    tif = tifffile.TiffFile(path)
    try:
        page = tif.pages[0]
        _check_tiff(path, page)
        pyramid, several = _tiff_pyramid(tif)
        cache = Cache()
        levels = [_tiff_level(path, tif, planes, cache) for planes in pyramid]
        remarks = ["several pages of one size, only the first is read"] if several else []
        channels = page.samplesperpixel if len(pyramid[0]) == 1 else len(pyramid[0])
        remarks += conversions(page.bitspersample, channels, page.photometric == PALETTE)
        return Image(levels, _tiff_spacings(tif), remarks=remarks, close=tif.close)
    except Exception:
        tif.close()
        raise


def _check_tiff(path, page):
    numbers = page.imagewidth, page.imagelength, page.samplesperpixel, page.bitspersample, page.rowsperstrip
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("a tag that is one number has several")
    if page.dtype is None or page.dtype.kind not in "ub" or page.bitspersample > 16:
        raise refused(path, f"pixels of type {page.dtype}, 8- or 16-bit unsigned expected")
    ycbcr = page.photometric == YCBCR and page.compression not in JPEG or page.compression == APERIO_YCBCR
    if page.photometric not in PHOTOMETRIC or ycbcr or page.imagedepth > 1:
        raise refused(path, f"the colour model {getattr(page.photometric, 'name', page.photometric)} is not read")


def _tiff_pyramid(tif):
    """The pages of each level, largest first (three where each is one colour); whether there is a second image."""
    first = tif.pages[0]
    planes = [first]
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


def _tiff_level(path, tif, planes, cache):
    page = planes[0]
    table = depth_table(page.bitspersample)
    if page.photometric == PALETTE:
        table = np.ascontiguousarray(page.colormap.T >> 8).astype(np.uint8)
    elif page.photometric == MINISWHITE:
        table = 255 - (np.arange(256, dtype=np.uint8) if table is None else table)
    size = page.imagewidth, page.imagelength
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    if page.is_memmappable and len(planes) == 1:
        dtype = np.dtype(tif.byteorder + page.dtype.char)
        mapped = np.memmap(path, dtype, "r", page.dataoffsets[0], page.shape)
        return ArrayLevel(np.moveaxis(mapped, 0, -1) if separate else mapped, table)

    def decode(index):
        parts = []
        for plane, first in sources:
            offset, count = plane.dataoffsets[first + index], plane.databytecounts[first + index]
            if count == 0:
                return None
            tif.filehandle.seek(offset)
            data = tif.filehandle.read(count)
            parts.append(plane.decode(data, first + index, jpegtables=plane.jpegtables)[0][0])
        return to_rgb(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2), table)

    segment = (page.tilewidth, page.tilelength) if page.is_tiled else (size[0], min(page.rowsperstrip, size[1]))
    level = GridLevel(path, size, segment, decode, cache)
    segments = level.columns * level.rows
    sources = [(plane, 0) for plane in planes]
    if separate:
        sources = [(page, channel * segments) for channel in range(page.samplesperpixel)][:3]
    for plane, first in sources:
        offsets = np.array(plane.dataoffsets[: first + segments], np.int64)
        counts = np.array(plane.databytecounts[: first + segments], np.int64)
        if len(offsets) < first + segments or len(counts) < first + segments:
            raise ValueError(f"{len(offsets)} of {first + segments} pieces are listed")
        if (offsets + counts).max() > tif.filehandle.size:
            raise ValueError("the file ends before its pixels do")
    return level


def _tiff_spacings(tif):
    """um/px by the resolution tags (which is what SimpleITK takes), by OME-XML, by Aperio's description."""
    page = tif.pages[0]
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
    elif found := re.search(r"\bMPP *= *([\d.]+)", text):
        spacings.append((float(found[1]), float(found[1])))
    return spacings


# --- pictures and MetaImage ---------------------------------------------------


def open_picture(path):
    """PNG or JPEG, decoded whole."""
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = None  # the size is checked here
    with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
        _check_whole(path, *image.size)
        spacings = [tuple(25400 / float(dpi) for dpi in image.info["dpi"])] if all(image.info.get("dpi", (0,))) else []
        bits = 16 if image.mode.startswith("I") else 8
        remarks = conversions(bits, len(image.getbands()), image.mode == "P") if image.mode != "CMYK" else ["CMYK"]
        if bits == 8 and image.mode != "RGB":
            image = image.convert("RGB")
        return Image([ArrayLevel(np.asarray(image), depth_table(bits))], spacings, remarks=remarks)


def open_mha(path):
    """MetaImage: uncompressed pixels are mapped, compressed ones are one stream and decoded whole."""
    header = {}
    with open(path, "rb") as file:
        while "ElementDataFile" not in header:
            key, equals, value = file.readline(4096).decode("latin-1").partition("=")
            if not equals:
                raise ValueError("no MetaImage header")
            header[key.strip()] = value.strip()
        start = file.tell()
        width, height, *pages = (int(side) for side in header["DimSize"].split())
        dimensions = 2 + len(pages)
        identity = list(np.eye(dimensions).ravel())
        channels = int(header.get("ElementNumberOfChannels", 1))
        depth = {"MET_UCHAR": 8, "MET_USHORT": 16}.get(header["ElementType"])
        if header["ElementDataFile"] != "LOCAL" or header.get("BinaryData", "True").lower() != "true":
            raise refused(path, "the pixels are not in the file itself, as bytes")
        if math.prod(pages) != 1:
            raise refused(path, f"{dimensions} dimensions ({header['DimSize']}), one plane expected")
        if depth is None or channels not in (1, 2, 3, 4):
            raise refused(path, f"pixels of {channels} x {header['ElementType']}")
        if [float(part) for part in header.get("TransformMatrix", "").split()] not in ([], identity):
            raise refused(path, "the image is turned (TransformMatrix)")
        order = ">" if header.get("BinaryDataByteOrderMSB", "False").lower() == "true" else "<"
        dtype, shape = np.dtype(f"{order}u{depth // 8}"), (height, width, channels)
        if header.get("CompressedData", "False").lower() == "true":
            _check_whole(path, width, height)
            data = zlib.decompressobj().decompress(file.read(), math.prod(shape) * dtype.itemsize)
            array = np.frombuffer(data, dtype).reshape(shape)
        else:
            array = np.memmap(path, dtype, "r", start, shape)
    spacing = [float(part) * 1000 for part in header.get("ElementSpacing", "").split()[:2]]
    offset = next((header[key] for key in ("Offset", "Position", "Origin") if key in header), "0 0")
    return Image(
        [ArrayLevel(array, depth_table(depth))],
        [tuple(spacing)] if spacing else [],
        tuple(float(part) for part in offset.split()[:2]),
        conversions(depth, channels),
    )


# --- whole slides -------------------------------------------------------------


def open_whole_slide(path):
    """What OpenSlide knows."""
    import openslide

    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not folder.is_dir():
        raise UserError(f"{path}: its folder {folder.name}/ is missing; copy it beside the file")
    slide = openslide.OpenSlide(path)
    slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    x, y = (float(slide.properties.get(f"openslide.mpp-{axis}", 0)) for axis in "xy")
    levels = [OpenSlideLevel(path, slide, number) for number in range(slide.level_count)]
    return Image(levels, [(x, y)] if x and y else [], close=slide.close)


class OpenSlideLevel:
    def __init__(self, path, slide, number):
        self._path = path
        self._slide = slide
        self._number = number
        self.size = slide.level_dimensions[number]
        tile = (int(slide.properties.get(f"openslide.level[{number}].tile-{side}", 0)) for side in ("width", "height"))
        _check_whole(path, *tile)  # OpenSlide would end the process for want of memory
        self._background = "#" + slide.properties.get("openslide.background-color", "ffffff")

    def read(self, x, y, width, height):
        import openslide
        import PIL.Image

        scale = self._slide.level_downsamples[self._number]
        try:
            region = self._slide.read_region((round(x * scale), round(y * scale)), self._number, (width, height))
        except openslide.OpenSlideError as error:
            raise UserError(
                f"{self._path}: the pixels from x {x}, y {y} on cannot be decoded ({brief(error)}); "
                "the file is damaged, copy it again"
            ) from error
        if region.getchannel("A").getextrema()[0] < 255:  # places that were not scanned
            below = PIL.Image.new("RGBA", region.size, self._background)
            region = PIL.Image.alpha_composite(below, region)
        return np.ascontiguousarray(np.asarray(region)[..., :3])


# OpenSlide refuses YBR_FULL, which common converters write; so DICOM is read here.
DICOM_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
DICOM_JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
DICOM_PLAIN = "1.2.840.10008.1.2.1"
PIXEL_DATA = b"\xe0\x7f\x10\x00"


def open_dicom(path):
    """A folder of one slide's `.dcm` instances, or one of them, which brings the rest of its series along."""
    import pydicom

    files = []
    volumes = []
    try:
        series = None if path.is_dir() else pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID
        for name in sorted((path if path.is_dir() else path.parent).glob("*.dcm")):
            files.append(name.open("rb"))
            header = pydicom.dcmread(files[-1], stop_before_pixels=True)
            if "VOLUME" in header.get("ImageType", ()) and series in (None, header.SeriesInstanceUID):
                volumes.append((header, files[-1]))
        if not volumes:
            raise UserError(f"{path}: no DICOM file with the pixels of a slide (VOLUME); name the folder that has it")
        volumes.sort(key=lambda volume: -volume[0].TotalPixelMatrixColumns)
        cache = Cache()
        levels = [_dicom_level(path, header, file, cache) for header, file in volumes]
        y, x = volumes[0][0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        return Image(levels, [(float(x) * 1000, float(y) * 1000)], close=lambda: [file.close() for file in files])
    except Exception:
        for file in files:
            file.close()
        raise


def _dicom_level(path, header, file, cache):
    import imagecodecs
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    syntax = header.file_meta.TransferSyntaxUID
    size = header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows
    segment = header.Columns, header.Rows
    frames = int(header.get("NumberOfFrames", 1))
    if syntax not in DICOM_JPEG | DICOM_JPEG_2000 | {DICOM_PLAIN} or header.SamplesPerPixel != 3:
        raise refused(path, f"{syntax.name} of {header.SamplesPerPixel} channels is not read")
    start = file.tell() + 12  # tag, type and length of the pixel data
    if file.read(4) != PIXEL_DATA:
        raise ValueError("no pixel data")
    file.seek(start)
    if syntax == DICOM_PLAIN:
        count = segment[0] * segment[1] * 3
        places = [(start + frame * count, count) for frame in range(frames)]
    else:
        parse_basic_offsets(file)  # optional in the file: the fragments themselves tell
        offsets = parse_fragments(file)[1]
        places = []
        for offset in offsets:
            file.seek(offset + 4)
            places.append((offset + 8, int.from_bytes(file.read(4), "little")))
    # Anything else is left to the JPEG's own marker: converters copy RGB tiles and label them YBR_FULL.
    colours = "RGB" if header.PhotometricInterpretation == "RGB" else None

    def decode(index):
        offset, count = places[index]
        file.seek(offset)
        data = file.read(count)
        if syntax in DICOM_JPEG:
            return imagecodecs.jpeg8_decode(data, colorspace=colours, outcolorspace="RGB")
        if syntax in DICOM_JPEG_2000:
            return imagecodecs.jpeg2k_decode(data)
        return np.frombuffer(data, np.uint8).reshape(*segment[::-1], 3)

    level = GridLevel(path, size, segment, decode, cache)
    if not level.columns * level.rows == frames == len(places):
        raise refused(path, f"{frames} frames in {len(places)} pieces do not tile {size[0]} x {size[1]} px once")
    return level
