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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief

if TYPE_CHECKING:
    from openslide import OpenSlideCache

CACHE_BYTES = 320 << 20  # four rows of 256 px segments, what a tile of 640 px touches, of a slide 100,000 px wide
WHOLE_BYTES = 1 << 30  # of pixels that can only be decoded in one piece
PLAUSIBLE_UM_PER_PX = 0.05, 5.0  # of a light microscope's scan; 72 dpi, "1 mm" or centimetres for inches are outside


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
        spacings: (x, y) um/px as the file says, unchecked, the most trusted first.
        origin_mm: (x, y) of the centre of the first pixel.
        remarks: what was changed on reading, a line each.
        close: releases the file.
    """

    levels: Sequence[Level]
    spacings: Sequence[tuple[float, float]] = ()
    origin_mm: tuple[float, float] = (0.0, 0.0)
    remarks: list[str] = field(default_factory=list)
    close: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        width, height = self.levels[0].size
        if min(width, height) < 1:
            raise ValueError(f"{width} x {height} px")


@dataclass
class Page:
    """A page of a stack, not decoded yet.

    Attributes:
        size: (width, height), px, unchecked.
        bits: of a channel.
        has_alpha: whether transparency is dropped.
        read: decodes it, uint8 (height, width, 3).
    """

    size: tuple[int, int]
    bits: int
    has_alpha: bool
    read: Callable[[], NDArray[np.uint8]]


def plausible(spacings: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The first (x, y) um/px that a scan can have, or None."""
    low, high = PLAUSIBLE_UM_PER_PX
    return next((spacing for spacing in spacings if all(low <= step <= high for step in spacing)), None)


def check_whole(width: int, height: int) -> None:
    """Refuse what has to be decoded in one piece and is too large for that."""
    if width * height * 3 > WHOLE_BYTES:
        raise UnsupportedError(f"{width} x {height} px are too many to decode in one piece")


def to_rgb(pixels: NDArray[Any], table: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) of any kind, through its table of 8-bit values -> uint8 (H, W, 3); alpha is dropped."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if table is not None:
        pixels = np.take(table, pixels[..., 0] if table.ndim == 2 else pixels, axis=0)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


@cache
def depth_table(bits: int) -> NDArray[np.uint8] | None:
    """uint8 (2 ** bits,): the 8-bit value of each value of `bits` bits; None where they are 8."""
    return None if bits == 8 else np.linspace(0, 255, 2**bits).round().astype(np.uint8)


def conversions(bits: int, channels: int, palette: bool = False) -> list[str]:
    """The remark on what becomes 8-bit RGB, in a list; empty for what is."""
    colour = "palette" if palette else {1: "grey", 2: "grey with alpha", 3: "RGB"}.get(channels, "RGB with alpha")
    return [] if (bits, colour) == (8, "RGB") else [f"{bits}-bit {colour}, read as 8-bit RGB"]


class ArrayLevel:
    """Pixels in memory or in a mapped file: (H, W) or (H, W, C)."""

    segment = 1, 1

    def __init__(self, array: NDArray[Any], table: NDArray[np.uint8] | None = None) -> None:
        self._array = array
        self._table = table
        self.size = array.shape[1], array.shape[0]

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return to_rgb(self._array[y : y + height, x : x + width], self._table)


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
