"""One protocol for every image, from a PNG to a slide of 60,000 x 60,000 px, read piece by piece.

TIFF is read by tifffile with imagecodecs, vendors' slides by OpenSlide, DICOM by
pydicom with imagecodecs, MetaImage by numpy, PNG, JPEG and BMP by Pillow.
Measured on one busy core, reading 512 x 512 px at 20 % overlap:

    tiled JPEG TIFF           tifffile 2.6 ms a read, OpenSlide 14 ms, which also refuses strips and 16 bits
    `.svs`, JPEG              OpenSlide 15 ms; 30 ms where it holds JPEG 2000
    DICOM, JPEG               pydicom 1.1 ms, and .26 s to open; OpenSlide refuses what common converters write
    7,215 x 5,412, LZW strips tifffile 9 ms, 110 MiB in all, since the cache holds the whole region
    60,000 x 60,000, JPEG     tifffile 2.8 ms, 330 MiB in all, 450 MiB after an overview

Imports take 15 to 35 ms (tifffile), 20 to 50 (OpenSlide) and 200 (pydicom), and
only where a file needs them.
"""

import logging
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import UserError, brief
from midog.images.level import Cache, Image, Level, UnsupportedError
from midog.images.metaimage import open_metaimage
from midog.images.picture import open_picture
from midog.images.resolution import ASSUMED, ASSUMED_UM_PER_PX, GIVEN, GIVEN_UM_PER_PX, Resolution, resolve
from midog.images.tiff import open_tiff
from midog.images.whole_slide import open_whole_slide

WHITE = 255
BAND_BYTES = 32 << 20  # of a level that an overview or a smaller picture of a part holds at once

_TIFF = {".tif", ".tiff", ".btf"}
_PICTURE = {".png", ".jpg", ".jpeg", ".bmp"}
_WHOLE_SLIDE = {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"}
_OTHERS = _TIFF | _PICTURE | _WHOLE_SLIDE | {".mha"}
SUFFIXES = _OTHERS | {".dcm"}

logger = logging.getLogger(__name__)

Read = Callable[[int, int, int, int], NDArray[np.uint8]]  # x, y, width, height, px -> (height, width, 3)
Made = TypeVar("Made")


def open_slide(
    path: str | Path,
    um_per_px: float | None = None,
    default_um_per_px: float = ASSUMED_UM_PER_PX,
    cache: Cache | None = None,
    refuse_implausible: bool = False,
) -> "Slide":
    """Open an image; nothing is decoded yet.

    What was changed or assumed is logged as a warning.

    Args:
        path: TIFF, `.mha`, PNG, JPEG, BMP, a slide that OpenSlide knows, or DICOM (a file or its folder).
        um_per_px: of both axes, whatever the file says.
        default_um_per_px: of both axes, where the file says nothing plausible.
        cache: for what is decoded, if several images share one.
        refuse_implausible: whether a resolution in the file that no scanner has is an error; else it is a warning, and
            `default_um_per_px` is taken.

    Returns:
        `Slide`, also a context manager.

    Raises:
        UserError: now or by `read`, if the file cannot be read or `um_per_px` is absurd.
    """
    path = Path(path)
    low, high = GIVEN_UM_PER_PX
    if um_per_px is not None and not low <= um_per_px <= high:
        raise UserError(f"{path}: --mpp {um_per_px:g} is no scan's spacing; give um per pixel, {low:g} to {high:g}")
    check_not_empty(path)
    kind, opened = _reader(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            image = opened(path, cache or Cache())
    except UserError:
        raise
    except UnsupportedError as reason:
        raise UserError(f"{path}: {reason}; convert it to an 8-bit RGB TIFF in tiles") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UserError(f"{path}: not a {kind} that can be read ({brief(error)}); copy or convert it again") from error
    resolution = resolve(image.spacings, um_per_px, default_um_per_px, image.objective)
    if resolution.in_file and refuse_implausible:
        image.close()
        raise UserError(f"{path}: {resolution.where}; name the right um per pixel with --mpp")
    for remark in image.remarks:
        logger.warning(f"{path.name}: {remark}")
    if resolution.source == ASSUMED:
        logger.warning(f"{path.name}: {resolution.where}: {default_um_per_px:g} um/px taken; name another with --mpp")
    if resolution.conflict:
        logger.warning(f"{path.name}: {resolution}; name the right one with --mpp")
    return _FileSlide(image, resolution)


def check_not_empty(path: Path) -> None:
    """Make sure that a file or folder is there and, if a file, holds something.

    Raises:
        UserError: else.
    """
    try:
        empty = not path.is_dir() and path.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if empty:
        raise UserError(f"{path}: the file is empty; copy it again")


def _reader(path: Path) -> tuple[str, Callable[[Path, Cache], Image]]:
    """What an image is called, and the function that opens it."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in _OTHERS:
        from midog.images.dicom import is_dicom, open_dicom

        if path.is_dir() or suffix == ".dcm" or is_dicom(path):  # archives name files by number
            return "DICOM slide", open_dicom
    if suffix in _TIFF:
        return "TIFF", open_tiff
    if suffix == ".mha":
        return "MetaImage", open_metaimage
    if suffix in _PICTURE:
        return "PNG, JPEG or BMP", open_picture
    if suffix in _WHOLE_SLIDE:
        return f"{suffix} slide", open_whole_slide
    known = " ".join(sorted(SUFFIXES))
    raise UserError(f"{path}: {suffix or 'no suffix'} is no known kind of image; convert it to one of {known}")


def at_spacing(slide: "Slide", um_per_px: float, tolerance: float = 0.10) -> "Slide":
    """The slide at a spacing: itself where both its spacings are within `tolerance` of it, else resampled on reading.

    The pixels of the two grids cover the same area; the resampled one's origin is
    moved by the half pixel that this takes, so a place has the same mm in both.

    Args:
        slide: `Slide`; closing the result closes it.
        um_per_px: of both axes.
        tolerance: relative.
    """
    if all(abs(found / um_per_px - 1) <= tolerance for found in slide.um_per_px):
        return slide
    return _Resampled(slide, um_per_px)


def reflected(index: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The pixels of an axis of `side` px that any pixels of its mirrored continuation show; as OpenCV's REFLECT_101."""
    if side == 1:
        return np.zeros_like(index)
    period = 2 * (side - 1)
    folded = np.abs(index) % period
    return np.minimum(folded, period - folded)


class Slide:
    """An image with its scale.

    Attributes:
        size: (width, height) of level 0, px.
        um_per_px: (x, y).
        origin_mm: (x, y) of the centre of the first pixel.
        resolution: where um_per_px is from.
        corner_px: (x, y) of the scanned area, from which QuPath counts.
        segment: (width, height) of what is decoded at once where a pixel is read, px; 1 x 1 where nothing is.
    """

    segment: tuple[int, int] = (1, 1)
    corner_px: tuple[int, int] = (0, 0)

    def __init__(
        self,
        size: Sequence[int],
        um_per_px: tuple[float, float],
        origin_mm: tuple[float, float] = (0.0, 0.0),
        resolution: Resolution | None = None,
    ) -> None:
        self.size = int(size[0]), int(size[1])
        self.um_per_px = float(um_per_px[0]), float(um_per_px[1])
        self.origin_mm = float(origin_mm[0]), float(origin_mm[1])
        self.resolution = resolution or Resolution(self.um_per_px, GIVEN, "")

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Level-0 pixels, uint8 (height, width, 3) RGB; safe to call from several threads.

        Raises:
            ValueError: if they do not all lie inside the image.
            UserError: if they cannot be decoded.
        """
        x, y, width, height = int(x), int(y), int(width), int(height)
        if min(x, y) < 0 or min(width, height) < 1 or x + width > self.size[0] or y + height > self.size[1]:
            raise ValueError(f"{width} x {height} px at {x}, {y} are not inside {self.size[0]} x {self.size[1]} px")
        return self._read(x, y, width, height)

    def read_padded(self, x: int, y: int, width: int, height: int, fill: int = WHITE) -> NDArray[np.uint8]:
        """Level-0 pixels of any place, uint8 (height, width, 3) RGB, with `fill` outside the image.

        Raises:
            UserError: if they cannot be decoded.
        """
        left, right = max(x, 0), min(x + width, self.size[0])
        top, bottom = max(y, 0), min(y + height, self.size[1])
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self.read(x, y, width, height)
        padded = np.full((height, width, 3), fill, np.uint8)
        if left < right and top < bottom:
            padded[top - y : bottom - y, left - x : right - x] = self.read(left, top, right - left, bottom - top)
        return padded

    def read_reflected(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Level-0 pixels of any place, uint8 (height, width, 3) RGB; outside, the image is mirrored at its edges.

        What networks see: tissue goes on where the image ends, whose edge is no sign of anything. The pixels at the
        edge are not repeated.

        Raises:
            UserError: if they cannot be decoded.
        """
        if x >= 0 and y >= 0 and x + width <= self.size[0] and y + height <= self.size[1]:
            return self.read(x, y, width, height)
        columns = reflected(np.arange(x, x + width), self.size[0])
        rows = reflected(np.arange(y, y + height), self.size[1])
        left, top = int(columns.min()), int(rows.min())
        inside = self.read(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
        return inside.take(rows - top, 0).take(columns - left, 1)  # a fifth of the time of both at once

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def overview(self, longest_side: int) -> NDArray[np.uint8]:
        """The whole image, averaged to at most `longest_side` px: uint8 (height, width, 3), never enlarged.

        The nearest larger level of the pyramid is read, band by band; without a
        pyramid the whole file is, once.
        """
        raise NotImplementedError

    def shrunk(self, x: int, y: int, width: int, height: int, factor: int) -> NDArray[np.uint8]:
        """Level-0 pixels of any place, averaged over squares, white outside the image.

        The nearest larger level of the pyramid is read, in pieces; without a pyramid level 0 is.

        Args:
            x, y, width, height: px of level 0; where a side is no multiple of `factor`, the last squares go beyond it.
            factor: a square's side, px; best a power of two, as those of pyramids are.

        Returns:
            uint8 (ceil(height / factor), ceil(width / factor), 3).

        Raises:
            UserError: if they cannot be decoded.
        """
        area = x, y, width, height
        return self.of_level(
            self._divided(factor), lambda level_size, read: _average(area, factor, self.size, level_size, read)
        )

    def coarseness(self, factor: int) -> float:
        """How many px a side of this image a pixel has of the level that `shrunk` reads; about 1 without a pyramid."""
        return self.size[0] / self.of_level(self._divided(factor), lambda level_size, _: level_size)[0]

    def _divided(self, factor: int) -> tuple[int, int]:
        return self.size[0] // factor, self.size[1] // factor

    def of_level(self, size: tuple[int, int], make: Callable[[tuple[int, int], Read], Made]) -> Made:
        """What `make` gives of the smallest level that has at least a size, or of a finer one if that is damaged.

        Args:
            size: (width, height), at most this image's.
            make: takes the level's size and how its pixels are read.

        Raises:
            UserError: level 0 cannot be decoded either.
        """
        return make(self.size, self.read)

    def points_mm(self, points: ArrayLike) -> NDArray[np.float64]:
        """Pixel (x, y), (N, 2), a pixel's centre at integers -> float64 (N, 2) in mm, as SimpleITK has it."""
        pixels = np.asarray(points, np.float64).reshape(-1, 2)
        return pixels * (np.array(self.um_per_px) / 1000) + self.origin_mm

    def close(self) -> None:
        """Release the file, if there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ArraySlide(Slide):
    """A `Slide` of pixels in memory.

    Attributes:
        pixels: uint8 (H, W, 3) RGB; not copied, and what is read are views of it.
    """

    pixels: NDArray[np.uint8]

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        um_per_px: tuple[float, float] = (0.25, 0.25),
        origin_mm: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"uint8 (H, W, 3) expected, got {pixels.dtype} {pixels.shape}")
        super().__init__((pixels.shape[1], pixels.shape[0]), um_per_px, origin_mm)
        self.pixels = pixels

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self.pixels[y : y + height, x : x + width]

    def overview(self, longest_side: int) -> NDArray[np.uint8]:
        return _shrink(self.size, self.size, longest_side, self._read)


class _FileSlide(Slide):
    def __init__(self, image: Image, resolution: Resolution) -> None:
        super().__init__(image.levels[0].size, resolution.um_per_px, image.origin_mm, resolution)
        self.segment = image.levels[0].segment
        self.corner_px = image.corner_px
        self._image = image
        self._levels = list(image.levels)  # without those that could not be decoded
        self._lock = threading.Lock()  # one file position, one cache

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self._read_level(self._image.levels[0], x, y, width, height)

    def _read_level(self, level: Level, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        with self._lock:
            return level.read(x, y, width, height)

    def overview(self, longest_side: int) -> NDArray[np.uint8]:
        size = _overview_size(self.size, longest_side)
        return self.of_level(size, lambda level_size, read: _shrink(self.size, level_size, longest_side, read))

    def of_level(self, size: tuple[int, int], make: Callable[[tuple[int, int], Read], Made]) -> Made:
        while True:
            level = _fitting(self._levels, size)
            try:
                return make(level.size, partial(self._read_level, level))
            except UserError as error:
                if level is self._levels[0]:
                    raise
                logger.warning(f"{error}; a finer level of the pyramid is read instead")
                self._levels = [other for other in self._levels if other is not level]

    def close(self) -> None:
        with self._lock:
            self._image.close()


def _overview_size(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    scale = min(1, longest_side / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def _fitting(levels: Sequence[Level], size: tuple[int, int]) -> Level:
    """The smallest of levels, largest first, that a picture of (width, height), at most level 0's, need not enlarge."""
    return [level for level in levels if level.size[0] >= size[0] and level.size[1] >= size[1]][-1]


def _shrink(
    size: tuple[int, int],
    level_size: tuple[int, int],
    longest_side: int,
    read: Read,
) -> NDArray[np.uint8]:
    """`Slide.overview` of an image of a size out of one of its levels; `read` takes x, y, width, height in it."""
    from PIL import Image

    width, height = _overview_size(size, longest_side)
    full_width, full_height = level_size
    step = full_height / height
    rows = max(1, int(BAND_BYTES / (3 * full_width * step)))
    view = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = int(top * step), min(math.ceil(bottom * step), full_height)
        band = Image.fromarray(read(0, first, full_width, last - first))
        box = 0, top * step - first, full_width, min(bottom * step, full_height) - first
        view[top:bottom] = np.asarray(band.resize((width, bottom - top), Image.Resampling.BOX, box))
    return view


def _average(
    area: tuple[int, int, int, int], factor: int, size: tuple[int, int], level_size: tuple[int, int], read: Read
) -> NDArray[np.uint8]:
    """`Slide.shrunk` of an image of a size out of one of its levels; `read` takes x, y, width, height in it."""
    from PIL import Image

    x, y, width, height = area
    columns, rows = math.ceil(width / factor), math.ceil(height / factor)
    steps = factor * np.array(level_size) / size  # level px a square
    if 3 * columns * rows * steps.prod() > BAND_BYTES and columns * rows > 1:
        axis = 0 if rows > 1 else 1  # rows first, because strips are as wide as the image
        half = (rows, columns)[axis] // 2 * factor
        parts = [(x, y, width, half), (x, y + half, width, height - half)]
        if axis == 1:
            parts = [(x, y, half, height), (x + half, y, width - half, height)]
        return np.concatenate([_average(part, factor, size, level_size, read) for part in parts], axis)
    place = np.array([x, y]) / factor
    start, end = place * steps, (place + (columns, rows)) * steps
    first, last = np.floor(start).astype(int), np.ceil(end).astype(int)
    low, high = np.maximum(first, 0), np.minimum(last, level_size)
    if (low >= high).any():
        return np.full((rows, columns, 3), WHITE, np.uint8)
    inside = read(*low.tolist(), *(high - low).tolist())
    pad = np.stack([low - first, last - high], axis=1)
    pixels = np.pad(inside, (pad[1], pad[0], (0, 0)), constant_values=WHITE)
    box = *(start - first).tolist(), *(end - first).tolist()
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BOX, box))


class _Resampled(Slide):
    def __init__(self, source: Slide, um_per_px: float) -> None:
        self._source = source
        self._steps = tuple(um_per_px / step for step in source.um_per_px)  # source px a px
        size = [max(1, round(side / step)) for side, step in zip(source.size, self._steps, strict=True)]
        x, y = source.points_mm([[(step - 1) / 2 for step in self._steps]])[0]
        super().__init__(size, (um_per_px, um_per_px), (x, y), source.resolution)

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        from PIL import Image

        ranges, pad, box = [], [], []
        for start, length, step, side in zip((x, y), (width, height), self._steps, self._source.size, strict=True):
            margin = math.ceil(2 * max(step, 1)) + 1  # what the bicubic filter reaches, so that no read has a border
            first, last = math.floor(start * step) - margin, math.ceil((start + length) * step) + margin
            inside = max(first, 0), min(last, side)
            ranges.append(inside)
            pad.append((inside[0] - first, last - inside[1]))
            box.append((start * step - first, (start + length) * step - first))
        (left, right), (top, bottom) = ranges
        pixels = self._source.read(left, top, right - left, bottom - top)
        pixels = np.pad(pixels, (pad[1], pad[0], (0, 0)), mode="edge")
        corners = box[0][0], box[1][0], box[0][1], box[1][1]
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, corners))

    def overview(self, longest_side: int) -> NDArray[np.uint8]:
        return self._source.overview(longest_side)

    def of_level(self, size: tuple[int, int], make: Callable[[tuple[int, int], Read], Made]) -> Made:
        least = min(size[0], self._source.size[0]), min(size[1], self._source.size[1])
        return self._source.of_level(least, make)

    def close(self) -> None:
        self._source.close()
