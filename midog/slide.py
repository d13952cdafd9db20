"""One protocol for every image, from a PNG to a slide of 60,000 x 60,000 px, read piece by piece.

TIFF is read by tifffile with imagecodecs, vendors' slides by OpenSlide, DICOM by
pydicom with imagecodecs, MetaImage by numpy, PNG and JPEG by Pillow. Measured on
one busy core, reading 512 x 512 px at 20 % overlap:

    tiled JPEG TIFF           tifffile 2.6 ms a read, OpenSlide 14 ms, which also refuses strips and 16 bits
    `.svs`, JPEG              OpenSlide 15 ms; 30 ms where it holds JPEG 2000
    DICOM, JPEG               pydicom 2.4 ms, and .3 s to open; OpenSlide refuses what common converters write
    7,215 x 5,412, LZW strips tifffile 9 ms, 110 MiB in all, since the cache holds the whole region
    60,000 x 60,000, JPEG     tifffile 2.8 ms, 330 MiB in all, 450 MiB after an overview

Imports take 15 to 35 ms (tifffile), 20 to 50 (OpenSlide) and 200 (pydicom), and
only where a file needs them.
"""

import math
import threading
import warnings
from pathlib import Path

import numpy as np

from midog import formats
from midog.errors import UserError, brief

PLAUSIBLE_UM_PER_PX = 0.05, 5.0  # of a light microscope's scan; 72 dpi, "1 mm" or centimetres for inches are outside
BAND_BYTES = 32 << 20  # of a level that an overview holds at once

_TIFF = {".tif", ".tiff", ".btf"}
_PICTURE = {".png", ".jpg", ".jpeg"}
_WHOLE_SLIDE = {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"}
SUFFIXES = _TIFF | _PICTURE | _WHOLE_SLIDE | {".mha", ".dcm"}


def open_slide(path, warn, um_per_px=None, default_um_per_px=0.25):
    """Open an image; nothing is decoded yet, except a PNG, a JPEG or a compressed `.mha`.

    Args:
        path: TIFF, `.mha`, PNG, JPEG, a slide that OpenSlide knows, or DICOM (a file or its folder).
        warn: called with one line for what was changed or assumed.
        um_per_px: of both axes, whatever the file says.
        default_um_per_px: of both axes, where the file says nothing plausible.

    Returns:
        `Slide`, also a context manager.

    Raises:
        UserError: now or by `read`, if the file cannot be read or `um_per_px` is absurd.
    """
    path = Path(path)
    if um_per_px is not None and not _plausible([(um_per_px, um_per_px)]):
        low, high = PLAUSIBLE_UM_PER_PX
        raise UserError(f"{path}: --mpp {um_per_px:g} is no scan's spacing; give um per pixel, {low:g} to {high:g}")
    suffix = path.suffix.lower()
    try:
        empty = not path.is_dir() and path.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if empty:
        raise UserError(f"{path}: the file is empty; copy it again")
    if path.is_dir() or suffix == ".dcm":
        kind, opened = "DICOM slide", formats.open_dicom
    elif suffix in _TIFF:
        kind, opened = "TIFF", formats.open_tiff
    elif suffix == ".mha":
        kind, opened = "MetaImage", formats.open_mha
    elif suffix in _PICTURE:
        kind, opened = "PNG or JPEG", formats.open_picture
    elif suffix in _WHOLE_SLIDE:
        kind, opened = f"{suffix} slide", formats.open_whole_slide
    else:
        known = " ".join(sorted(SUFFIXES))
        raise UserError(f"{path}: {suffix or 'no suffix'} is no known kind of image; convert it to one of {known}")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = opened(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UserError(f"{path}: not a {kind} that can be read ({brief(error)}); copy or convert it again") from error
    for remark in image.remarks:
        warn(f"{path.name}: {remark}")
    spacing = _plausible(image.spacings) if um_per_px is None else (um_per_px, um_per_px)
    if spacing is None:
        found = "no resolution in the file"
        if image.spacings:
            found = "the resolution in the file, {:.4g} x {:.4g} um/px, cannot be right".format(*image.spacings[0])
        warn(f"{path.name}: {found}: {default_um_per_px:g} um/px taken; name another with --mpp")
        spacing = default_um_per_px, default_um_per_px
    return _File(image, spacing)


def at_spacing(slide, um_per_px, tolerance=0.10):
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


class Slide:
    """An image with its scale.

    Attributes:
        size: (width, height) of level 0, px.
        um_per_px: (x, y).
        origin_mm: (x, y) of the centre of the first pixel.
    """

    def __init__(self, size, um_per_px, origin_mm):
        self.size = tuple(int(side) for side in size)
        self.um_per_px = tuple(float(step) for step in um_per_px)
        self.origin_mm = tuple(float(start) for start in origin_mm)

    def read(self, x, y, width, height):
        """Level-0 pixels, uint8 (height, width, 3) RGB; safe to call from several threads.

        Raises:
            ValueError: if they do not all lie inside the image.
            UserError: if they cannot be decoded.
        """
        x, y, width, height = int(x), int(y), int(width), int(height)
        if min(x, y) < 0 or min(width, height) < 1 or x + width > self.size[0] or y + height > self.size[1]:
            raise ValueError(f"{width} x {height} px at {x}, {y} are not inside {self.size[0]} x {self.size[1]} px")
        return self._read(x, y, width, height)

    def overview(self, longest_side):
        """The whole image, averaged to at most `longest_side` px: uint8 (height, width, 3), never enlarged.

        The nearest larger level of the pyramid is read, band by band; without a
        pyramid the whole file is, once.
        """
        raise NotImplementedError

    def points_mm(self, points):
        """Pixel (x, y), (N, 2), a pixel's centre at integers -> float64 (N, 2) in mm, as SimpleITK has it."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return points * (np.array(self.um_per_px) / 1000) + self.origin_mm

    def close(self):
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _File(Slide):
    def __init__(self, image, um_per_px):
        super().__init__(image.levels[0].size, um_per_px, image.origin_mm)
        self._image = image
        self._lock = threading.Lock()  # one file position, one cache

    def _read(self, x, y, width, height, level=0):
        with self._lock:
            return self._image.levels[level].read(x, y, width, height)

    def overview(self, longest_side):
        from PIL import Image

        scale = min(1, longest_side / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        sizes = [level.size for level in self._image.levels]
        level = max(
            number for number, size in enumerate(sizes) if number == 0 or min(size[0] - width, size[1] - height) >= 0
        )
        full_width, full_height = sizes[level]
        step = full_height / height
        rows = max(1, int(BAND_BYTES / (3 * full_width * step)))
        view = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = int(top * step), min(math.ceil(bottom * step), full_height)
            band = Image.fromarray(self._read(0, first, full_width, last - first, level))
            box = 0, top * step - first, full_width, min(bottom * step, full_height) - first
            view[top:bottom] = np.asarray(band.resize((width, bottom - top), Image.Resampling.BOX, box))
        return view

    def close(self):
        with self._lock:
            self._image.close()


class _Resampled(Slide):
    def __init__(self, source, um_per_px):
        self._source = source
        self._steps = tuple(um_per_px / step for step in source.um_per_px)  # source px a px
        size = (max(1, round(side / step)) for side, step in zip(source.size, self._steps, strict=True))
        moved = source.points_mm([[(step - 1) / 2 for step in self._steps]])[0]
        super().__init__(size, (um_per_px, um_per_px), moved)

    def _read(self, x, y, width, height):
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

    def overview(self, longest_side):
        return self._source.overview(longest_side)

    def close(self):
        self._source.close()


def _plausible(spacings):
    """The first (x, y) um/px that a scan can have, or None."""
    low, high = PLAUSIBLE_UM_PER_PX
    return next((spacing for spacing in spacings if all(low <= step <= high for step in spacing)), None)
