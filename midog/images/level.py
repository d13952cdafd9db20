"""What every format's reader gives: an `Image` of levels whose pixels are decoded where they are asked for.

A compressed file is a grid of segments (tiles, or strips as wide as the image); those used last stay in a cache of a
fixed size, which several files can share. Uncompressed pixels are mapped. What has no segments (PNG, JPEG, compressed
`.mha`) is one segment, up to `WHOLE_BYTES`.

A reader raises `UnsupportedError` for what it does not read; the errors of the libraries pass through it as they are.
`midog.images.slide` and `midog.images.stack` turn both into one line that names the file and the remedy.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief
from midog.images.resolution import Spacing

if TYPE_CHECKING:
    from openslide import OpenSlideCache

CACHE_BYTES = 320 << 20  # four rows of 256 px segments, what a tile of 640 px touches, of a slide 100,000 px wide
LONGEST_SIDE = 1 << 22  # px, a metre of slide
WHOLE_BYTES = 1 << 30  # of pixels that can only be decoded in one piece
WHITE = 255
CAMERA_BITS = 8, 10, 12, 14  # that are written into 16
DROPPED = "without its {} channel, whose meaning the file does not say"
CHANNELS_FIRST = "the colours seem to come before rows and columns: write them last, as (N, H, W, 3)"


class UnsupportedError(Exception):
    """Why a file that may be sound is not read."""


class Level(Protocol):
    """One level of a pyramid, in its own pixels.

    Attributes:
        size: (width, height).
        segment: (width, height) of what is decoded at once, 1 x 1 where nothing is.
    """

    size: tuple[int, int]
    segment: tuple[int, int]

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3) of a place inside the level."""
        ...


@dataclass
class Image:
    """What a format's reader finds in a file.

    Attributes:
        levels: the pyramid, largest first.
        spacings: what places in the file say of um/px, unchecked, the most trusted first.
        origin_mm: (x, y) of the centre of the first pixel.
        remarks: what was changed on reading, a line each.
        objective: its magnification, as far as the file names it ("20x").
        corner_px: (x, y) of the scanned area in level 0, from which QuPath counts; 0, 0 in most formats.
        close: releases the file.
    """

    levels: Sequence[Level]
    spacings: Sequence[Spacing] = ()
    origin_mm: tuple[float, float] = (0.0, 0.0)
    remarks: list[str] = field(default_factory=list)
    objective: str = ""
    corner_px: tuple[int, int] = (0, 0)
    close: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        width, height = self.levels[0].size
        if not 1 <= min(width, height) <= max(width, height) <= LONGEST_SIDE:
            raise ValueError(f"{width} x {height} px")


@dataclass
class Page:
    """A page of a stack, not decoded yet.

    Attributes:
        size: (width, height), px, unchecked.
        remarks: what becomes of its pixels on reading, a line each.
        read: decodes it, uint8 (height, width, 3).
        is_preview: whether it only shows another page in small.
    """

    size: tuple[int, int]
    remarks: Sequence[str]
    read: Callable[[], NDArray[np.uint8]]
    is_preview: bool = False


def check_whole(width: int, height: int) -> None:
    """Refuse what has to be decoded in one piece and is too large for that."""
    if width * height * 3 > WHOLE_BYTES:
        raise UnsupportedError(f"{width} x {height} px are too many to decode in one piece")


def to_rgb(pixels: NDArray[Any], table: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) of any kind, through its table of 8-bit values -> uint8 (H, W, 3); a fourth is dropped."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if table is not None:
        pixels = np.take(table, pixels[..., 0] if table.ndim == 2 else pixels, axis=0)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], associated: bool = False) -> NDArray[np.uint8]:
    """What a viewer shows of pixels that are transparent, on a white page.

    Args:
        rgb: (H, W, 3).
        alpha: (H, W), 255 where nothing shines through.
        associated: whether `rgb` is multiplied by it already.
    """
    if alpha.min() == WHITE:
        return rgb
    opacity = alpha[..., None].astype(np.uint16)
    colour = rgb.astype(np.uint16)
    if not associated:
        colour = (colour * opacity + WHITE // 2) // WHITE
    return np.minimum(colour + (WHITE - opacity), WHITE).astype(np.uint8)


@dataclass(frozen=True)
class Depth:
    """The bits of a sample.

    Attributes:
        stored: of a sample in the file.
        used: how many of them, the lowest, carry something: 12 of a camera's 16.
        where: the place in the file that says so, or nothing where it was seen in the values.
    """

    stored: int = 8
    used: int = 8
    where: str = ""

    @property
    def table(self) -> NDArray[np.uint8] | None:
        """uint8 (2 ** stored,): the 8-bit value of each value; None where that is the value."""
        return None if (self.stored, self.used) == (8, 8) else _depth_table(self.stored, self.used)

    def __str__(self) -> str:
        if self.used == self.stored:
            return f"{self.stored}-bit"
        return f"{self.used}-bit in {self.stored} ({self.where or f'no value is above {2**self.used - 1}'})"


@cache
def _depth_table(stored: int, used: int) -> NDArray[np.uint8]:
    values = np.arange(2**stored) * (WHITE / (2**used - 1))
    return np.minimum(values, WHITE).round().astype(np.uint8)


def seen_depth(stored: int, parts: Iterable[NDArray[Any]]) -> Depth:
    """What the values of an image, which may come in parts, need; of 16 bits only, since no camera fills less.

    Slides hold glass, which is bright: values that stay below a quarter of what there is room for are those of a
    camera with fewer bits.
    """
    highest = 0
    for part in parts if stored == 16 else ():
        highest = max(highest, int(part.max()))
        if highest >= 2 ** CAMERA_BITS[-1]:
            break
    return Depth(stored, next((bits for bits in CAMERA_BITS if 0 < highest < 2**bits), stored))


def conversions(depth: Depth, colour: str, extra: str = "") -> list[str]:
    """The remark on what becomes 8-bit RGB, in a list; empty for what is.

    Args:
        depth: of a sample.
        colour: "RGB", "grey" or another model's name.
        extra: what becomes of further channels.
    """
    plain = depth == Depth() and colour == "RGB" and not extra
    return [] if plain else [f"{depth} {colour}{extra and f' {extra}'}, read as 8-bit RGB"]


class ArrayLevel:
    """Pixels in memory or in a mapped file.

    Args:
        array: (H, W) or (H, W, C).
        convert: makes a part of it uint8 (h, w, 3).
    """

    segment = 1, 1

    def __init__(self, array: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[np.uint8]] = to_rgb) -> None:
        self._array = array
        self._convert = convert
        self.size = array.shape[1], array.shape[0]

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self._convert(self._array[y : y + height, x : x + width])


class Cache:
    """The segments used last, of one file or of several, from several threads.

    Args:
        limit: bytes; a segment that is larger is kept until the next one comes.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int], make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """What is kept under a key, or what `make` gives."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value
                self._bytes += value.nbytes
            while self._bytes > self.limit and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return value

    @cached_property
    def openslide(self) -> "OpenSlideCache":
        """OpenSlide's own, of the same size."""
        import openslide

        return openslide.OpenSlideCache(self.limit)


class GridLevel:
    """Pixels in segments of one size, row by row, those at the right and lower edge cut or padded.

    Args:
        path: for messages.
        size, segment: (width, height) of the level and of a segment, px.
        decode: index of a segment -> uint8 (h, w, 3), or None for one the file leaves out.
        cache: shared by the levels of a file, or by files.
    """

    _numbers = itertools.count()  # never twice in a process: a cache can outlive a level

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        segment: tuple[int, int],
        decode: Callable[[int], NDArray[np.uint8] | None],
        cache: Cache,
    ) -> None:
        if min(segment) < 1:
            raise ValueError(f"pieces of {segment[0]} x {segment[1]} px")
        check_whole(*segment)
        self._path = path
        self.size = size
        self.segment = segment
        self._decode = decode
        self._cache = cache
        self._number = next(self._numbers)
        self.columns, self.rows = (math.ceil(whole / part) for whole, part in zip(size, segment, strict=True))

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        pixels = np.empty((height, width, 3), np.uint8)
        across, down = self.segment
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                left, top = column * across, row * down
                x0, x1 = max(x, left), min(x + width, left + across)
                y0, y1 = max(y, top), min(y + height, top + down)
                segment = self._cache.get((self._number, row, column), partial(self._checked, row, column))
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return pixels

    def _checked(self, row: int, column: int) -> NDArray[np.uint8]:
        left, top = column * self.segment[0], row * self.segment[1]
        width, height = min(self.segment[0], self.size[0] - left), min(self.segment[1], self.size[1] - top)
        try:
            segment = self._decode(row * self.columns + column)
            if segment is None:  # scanners leave out glass
                return np.full((height, width, 3), 255, np.uint8)
            if segment.shape[0] < height or segment.shape[1] < width:
                raise ValueError(f"{segment.shape[1]} x {segment.shape[0]} px instead of {width} x {height}")
        except Exception as error:
            raise damaged_at(self._path, left, top, error) from error
        return segment


def damaged_at(path: Path, x: int, y: int, error: Exception) -> UserError:
    """The line on pixels that cannot be decoded."""
    return UserError(
        f"{path}: the pixels from x {x}, y {y} on cannot be decoded ({brief(error)}); "
        "the file is damaged, copy it again"
    )
