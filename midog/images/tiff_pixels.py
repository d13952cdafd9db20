"""The pixels of a TIFF's page, whatever their compression, layout and colour model.

Regions, levels of a pyramid and pages of a stack are all read by `Picture`. A new compression or colour model belongs
here: what its decoder gives in `_model`, how that becomes RGB in `_convert`.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import brief
from midog.images.level import (
    CHANNELS_FIRST,
    DROPPED,
    ArrayLevel,
    Cache,
    Depth,
    GridLevel,
    Level,
    UnsupportedError,
    conversions,
    over_white,
    to_rgb,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MINISWHITE, MINISBLACK, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {MINISWHITE: 1, MINISBLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3}
NAMES = {CMYK: "CMYK", YCBCR: "YCbCr", CIELAB: "LAB"}  # Pillow's modes, too
ASSOCIATED, UNASSOCIATED = 1, 2  # of ExtraSamples
JPEG = {6, 7, 34892, 33007}  # whose decoder makes YCbCr RGB
APERIO_YCBCR = 33003
JPEG_2000 = {APERIO_YCBCR, 33004, 33005, 34712}
JP2_SIGNATURE, JP2_YCBCR = b"\0\0\0\x0cjP  ", b"colr\x01\0\0\0\0\0\x12"  # the box of a colour space, sYCC
SIZES, CODING = b"\xff\x4f\xff\x51", b"\xff\x52"  # the first segments of a JPEG 2000 codestream
MOST_CHANNELS = 5  # CMYK with alpha
BAND_BYTES = 4 << 20  # of mapped pixels that are looked at at once
DARK = 24  # what JPEG makes of black, at most


@dataclass(frozen=True)
class Plane:
    """The pixels of a page.

    Attributes:
        page: tifffile's.
        shift: bytes from the page's own pixels to these, in a file that names only the first of many of one size.
    """

    page: "TiffPage"
    shift: int = 0


class Picture:
    """One picture of a TIFF.

    Args:
        path: of the file, open as `tif`.
        planes: of one page, or of three that are its red, its green and its blue.
        is_preview: whether it shows another picture in small, or what is around it.

    Attributes:
        size: (width, height), px; may be set to less where a page is padded.
        is_padded: whether black at the right and lower edge of a tile is no part of the picture.
    """

    def __init__(self, path: Path, tif: "TiffFile", planes: Sequence[Plane], is_preview: bool = False) -> None:
        self.planes = planes
        self.is_preview = is_preview
        self.page = planes[0].page
        self.size: tuple[int, int] = self.page.imagewidth, self.page.imagelength
        self.is_padded = False
        self._path, self._tif = path, tif

    def check(self) -> None:
        """Make sure that the pixels can be read.

        Raises:
            UnsupportedError: what is not read, by name.
            ValueError: a damaged page.
        """
        page = self.page
        numbers = page.imagewidth, page.imagelength, page.samplesperpixel, page.bitspersample, page.rowsperstrip
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("a tag that is one number has several")
        if min(self.size) < 1:
            raise ValueError(f"{self.size[0]} x {self.size[1]} px")
        if page.dtype is None or page.dtype.kind not in "ub" or page.bitspersample > 16:
            raise UnsupportedError(f"pixels of type {page.dtype}, 8- or 16-bit unsigned expected")
        colours = getattr(page.photometric, "name", page.photometric)
        if page.photometric not in CHANNELS or page.imagedepth > 1:
            raise UnsupportedError(f"the colour model {colours} is not read")
        channels = page.samplesperpixel
        if not CHANNELS[page.photometric] <= channels <= MOST_CHANNELS:
            first = f"; {CHANNELS_FIRST}" if 3 in page.shape else ""
            raise UnsupportedError(f"{channels} channels a pixel in the colour model {colours} are not read{first}")
        if page.photometric == CIELAB and page.bitspersample != 8:
            raise UnsupportedError(f"the colour model {colours} of {page.bitspersample} bits is not read")
        if page.compression in JPEG_2000:
            return
        try:
            page.decode(None, 0)  # makes the decoder, and only that
        except Exception as error:
            name = getattr(page.compression, "name", "")
            compression = f"{name} ({int(page.compression)})" if name else str(page.compression)
            reason = f"the colour model {colours} in the compression {compression} is not read"
            raise UnsupportedError(f"{reason} ({brief(error)})") from None

    @cached_property
    def _model(self) -> int:
        """TIFF's number of the colours that come out of the decoder."""
        page = self.page
        if len(self.planes) == 3 or page.photometric in (MINISWHITE, MINISBLACK) and page.samplesperpixel >= 3:
            return RGB
        if page.compression in JPEG_2000 and page.samplesperpixel >= 3:
            is_ycbcr = page.compression == APERIO_YCBCR or page.photometric == YCBCR
            return YCBCR if is_ycbcr and (self._is_separate or not self._is_made_rgb) else RGB
        if page.photometric == YCBCR and page.compression in JPEG and page.planarconfig == 1:
            return RGB
        return int(page.photometric)

    @cached_property
    def _is_made_rgb(self) -> bool:
        """Whether JPEG 2000's decoder makes YCbCr RGB: because it is its own transform, subsampled, or labelled."""
        places = zip(self.page.dataoffsets, self.page.databytecounts, strict=False)
        offset = next((offset for offset, count in places if count), 0)
        self._tif.filehandle.seek(offset)
        head = self._tif.filehandle.read(1024)
        sizes = _codestream(head)
        coding = head.find(CODING, sizes + int.from_bytes(head[sizes + 2 : sizes + 4]))
        if coding < 0:
            raise ValueError("no JPEG 2000 codestream")
        subsampled = head[sizes + 44] > 1  # dx of the second component: the first starts at 40 and has 3 bytes
        transformed = head[coding + 8] == 1
        return transformed or subsampled or head.startswith(JP2_SIGNATURE) and JP2_YCBCR in head

    @property
    def mode(self) -> str | None:
        """Pillow's name of the colours, where they are neither grey nor RGB."""
        return NAMES.get(self._model)

    @property
    def channels(self) -> int:
        """Of the colour, without alpha."""
        return CHANNELS[self._model]

    @property
    def _alpha(self) -> tuple[int, bool] | None:
        """The number of the channel that is opacity, and whether the colours are multiplied by it."""
        extra = self.page.extrasamples
        for number, meaning in enumerate(extra, self.page.samplesperpixel - len(extra)):
            if meaning in (ASSOCIATED, UNASSOCIATED) and number >= self.channels:
                return number, meaning == ASSOCIATED
        return None

    def remarks(self, depth: Depth) -> list[str]:
        """What becomes of the pixels, a line each."""
        page = self.page
        colour = {CMYK: "CMYK", CIELAB: "LAB"}.get(self._model, "grey" if self.channels == 1 else "RGB")
        if self._model == PALETTE:
            colour = "palette"
        elif len(self.planes) == 3 or self.channels == 3 and page.photometric in (MINISWHITE, MINISBLACK):
            colour = "grey of three planes, taken as red, green and blue"
        extra = ""
        if self._alpha is not None:
            extra = "with alpha, shown on white"
        elif page.samplesperpixel > self.channels:
            extra = DROPPED.format({1: "second", 3: "fourth"}.get(self.channels, "fifth"))
        return conversions(depth, colour, extra)

    def values(self) -> Iterator[NDArray[Any]]:
        """The colours as stored, (h, w) or (h, w, C), part by part.

        Raises:
            Exception: whatever a decoder raises on a damaged part.
        """
        if (mapped := self._mapped) is not None:
            rows = max(1, BAND_BYTES // mapped[0].nbytes)
            for top in range(0, len(mapped), rows):
                yield self._colours(mapped[top : top + rows])
            return
        for plane, first in self._sources[: self.channels]:
            for index in range(self._segments):
                if (part := self._decode(plane, first + index)) is not None:
                    yield self._colours(part)

    def level(self, depth: Depth, cache: Cache) -> Level:
        """The pixels, decoded where they are asked for; `check` comes before.

        Raises:
            ValueError: the file does not hold them all.
        """
        convert = self._convert(depth)
        if (mapped := self._mapped) is not None:
            return ArrayLevel(mapped[: self.size[1], : self.size[0]], convert)

        def decode(index: int) -> NDArray[np.uint8] | None:
            if level.columns != self._columns:  # the page is padded by whole tiles
                index = index // level.columns * self._columns + index % level.columns
            parts = []
            for plane, first in self._sources:
                part = self._decode(plane, first + index)
                if part is None:
                    return None
                parts.append(part)
            return convert(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2))

        level = GridLevel(self._path, self.size, self._segment, decode, cache)
        for plane, first in self._sources:
            last, page = first + self._segments, plane.page
            offsets = np.array(page.dataoffsets[:last], np.int64)
            counts = np.array(page.databytecounts[:last], np.int64)
            if len(offsets) < last or len(counts) < last:
                raise ValueError(f"{len(offsets)} of {last} pieces are listed")
            if (offsets + counts).max() + plane.shift > self._tif.filehandle.size:
                raise ValueError("the file ends before its pixels do")
        return level

    @cached_property
    def _mapped(self) -> NDArray[Any] | None:
        """The pixels in the file, (H, W) or (H, W, C), where nothing has to be decoded and they lie in one piece."""
        page, shift = self.page, self.planes[0].shift
        if len(self.planes) == 3 or self.mode is not None or not page.is_memmappable:
            return None
        dtype = np.dtype(page.dtype).newbyteorder(self._tif.byteorder)
        mapped = np.memmap(self._path, dtype, "r", page.dataoffsets[0] + shift, page.shape)
        return np.moveaxis(mapped, 0, -1) if self._is_separate else mapped

    @property
    def _is_separate(self) -> bool:
        return self.page.planarconfig == 2 and self.page.samplesperpixel > 1

    @cached_property
    def _segment(self) -> tuple[int, int]:
        page = self.page
        if page.is_tiled:
            return page.tilewidth, page.tilelength
        return page.imagewidth, min(page.rowsperstrip, page.imagelength)

    @cached_property
    def _columns(self) -> int:
        return -(-self.page.imagewidth // max(self._segment[0], 1))

    @cached_property
    def _segments(self) -> int:
        """Of a plane."""
        return self._columns * -(-self.page.imagelength // max(self._segment[1], 1))

    @cached_property
    def _sources(self) -> list[tuple[Plane, int]]:
        """Where the channels are that are read: planes, each with the number of its first segment."""
        if not self._is_separate:
            return [(plane, 0) for plane in self.planes]
        read = self.channels if self._alpha is None else self._alpha[0] + 1
        return [(self.planes[0], channel * self._segments) for channel in range(read)]

    def _decode(self, plane: Plane, index: int) -> NDArray[Any] | None:
        """(h, w, C) as stored, or None for what the file leaves out."""
        page, file = plane.page, self._tif.filehandle
        count = page.databytecounts[index]
        if count == 0:
            return None
        file.seek(page.dataoffsets[index] + plane.shift)
        data = file.read(count)
        if page.compression in JPEG_2000:
            import imagecodecs

            right, lower, left, upper = struct.unpack_from(">4I", data, _codestream(data) + 6)
            if right - left > self._segment[0] or lower - upper > self._segment[1]:  # would be decoded for minutes
                raise ValueError(f"{right - left} x {lower - upper} px in a piece of {self._segment[0]} px")
            pixels: NDArray[Any] = imagecodecs.jpeg2k_decode(data)
            return pixels if pixels.ndim == 3 else pixels[..., None]
        decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        if decoded is None:
            raise ValueError("no pixels")
        return decoded[0]

    def _colours(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels if pixels.ndim == 2 else pixels[..., : self.channels]

    def _convert(self, depth: Depth) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
        """What makes (h, w, C) as stored uint8 (h, w, 3)."""
        colour = partial(_by_pillow, mode=self.mode, table=depth.table) if self.mode else self._by_table(depth)
        alpha = self._alpha

        def on_white(pixels: NDArray[Any]) -> NDArray[np.uint8]:
            assert alpha is not None
            opacity = pixels[..., alpha[0]]
            table = depth.table
            return over_white(colour(self._colours(pixels)), opacity if table is None else table[opacity], alpha[1])

        convert = colour if alpha is None else on_white
        if not self.is_padded:
            return convert
        return lambda pixels: _without_padding(convert(pixels))

    def _by_table(self, depth: Depth) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
        page, table = self.page, depth.table
        if self._model == PALETTE:
            if page.colormap is None:
                raise ValueError("no colour map")
            is_8_bit = page.colormap.max() <= 255  # against the standard, but widely written
            table = np.ascontiguousarray(page.colormap.T >> (0 if is_8_bit else 8)).astype(np.uint8)
        elif page.photometric == MINISWHITE:
            table = 255 - (np.arange(256, dtype=np.uint8) if table is None else table)
        return to_rgb if table is None else partial(to_rgb, table=table)


def _codestream(data: bytes) -> int:
    """The place of the first segment, with the sizes, in a JPEG 2000."""
    start = data.find(SIZES)
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    return start + 2


def _by_pillow(pixels: NDArray[Any], mode: str, table: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """(h, w, C) of another colour model -> uint8 (h, w, 3) RGB."""
    import PIL.Image

    pixels = np.ascontiguousarray(pixels[..., : PIL.Image.getmodebands(mode)])
    if table is not None:
        pixels = table[pixels]
    image = PIL.Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes(), "raw", mode)
    return np.asarray(image.convert("RGB"))


def _without_padding(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile with white where it ends in black rows or columns."""
    if tile[-1].max() > DARK and tile[:, -1].max() > DARK:
        return tile
    bright = tile.max(axis=2) > DARK
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    height, width = (int(lit[-1]) + 1 if lit.size else 0 for lit in (rows, columns))
    white = np.full_like(tile, 255)
    white[:height, :width] = tile[:height, :width]
    return white
