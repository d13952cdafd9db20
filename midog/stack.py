"""A stack of crops, one page a mitotic figure, read page by page.

Pillow reads the TIFF stacks: it decodes every compression and colour mode of
interest in one wheel, seeks lazily, and costs a tenth of SimpleITK's import.
SimpleITK reads `.mha`, a block of pages at a time.
"""

import contextlib
import os
import warnings
from pathlib import Path

import numpy as np

from midog.errors import UserError, brief

CROP_SIDE = 128  # px, the side of a page in MIDOG 2025
CROP_UM_PER_PX = 0.25  # so that a page shows 32 um
LONGEST_SIDE = 4096  # px; a longer page is a region or a slide, not a crop
BLOCK_BYTES = 16 << 20  # of a .mha that are decoded at once


class Stack:
    """The pages of one file, in page order.

    Args:
        path: multi-page `.tif`/`.tiff`, or `.mha` of two or three dimensions.
        warn: called with one line for what was changed on reading.

    Attributes:
        um_per_px: (x, y) as the file says, or None.

    Iterating gives uint8 (128, 128, 3) RGB arrays; only one page (of a `.mha`,
    one block of pages) is in memory.

    Raises:
        UserError: on opening or while iterating, if a page cannot be read.
    """

    def __init__(self, path, warn):
        self.path = Path(path)
        self._warn = warn
        self._warned = set()
        try:
            empty = self.path.stat().st_size == 0
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); check the path") from None
        if empty:
            raise UserError(f"{self.path}: the file is empty; copy it again")
        self._source = (_Mha if self.path.suffix.lower() == ".mha" else _Tiff)(self.path)
        self.um_per_px = self._source.um_per_px

    def __iter__(self):
        for number, page in enumerate(self._source.pages(), start=1):
            yield self._to_crop(self._to_rgb(page, number))

    def _warn_once(self, kind, text):
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(f"{self.path.name}: {text}")

    def _to_rgb(self, page, number):
        """(H, W) or (H, W, C) of 8 or 16 bit -> uint8 (H, W, 3)."""
        if page.dtype.newbyteorder("=") == np.uint16:
            self._warn_once("depth", "16-bit pages, scaled to 8 bit")
            page = (page / 257).round().astype(np.uint8)
        elif page.dtype == bool:
            page = page * np.uint8(255)
        elif page.dtype != np.uint8:
            raise _unusable(self.path, number, f"pixels of type {page.dtype}, 8- or 16-bit unsigned expected")
        if page.ndim == 2:
            page = page[..., None]
        channels = page.shape[2]
        if channels not in (1, 3, 4):
            raise _unusable(self.path, number, f"{channels} channels, 1, 3 or 4 expected")
        if channels == 4:
            self._warn_once("alpha", "transparency dropped")
        return np.repeat(page, 3, axis=2) if channels == 1 else page[..., :3]

    def _to_crop(self, page):
        """Scale and cut (or pad) a page of another size to the field of view of a crop, 32 um."""
        height, width = page.shape[:2]
        if (height, width) == (CROP_SIDE, CROP_SIDE):
            return np.ascontiguousarray(page)
        if self.um_per_px is None:
            scale_x = scale_y = CROP_SIDE / max(height, width)
            how = "the longer side taken as 32 um (the file names no resolution)"
        else:
            scale_x, scale_y = (size / CROP_UM_PER_PX for size in self.um_per_px)
            how = f"scaled from {self.um_per_px[0]:.4g} um/px, the central 32 um kept"
        self._warn_once("size", f"pages of {width} x {height} px instead of {CROP_SIDE} x {CROP_SIDE}: {how}")
        from PIL import Image

        size = max(1, round(width * scale_x)), max(1, round(height * scale_y))
        page = np.asarray(Image.fromarray(page).resize(size, Image.Resampling.BICUBIC))
        for axis in (0, 1):
            missing = CROP_SIDE - page.shape[axis]
            if missing > 0:
                before = missing // 2
                pad = [(0, 0)] * 3
                pad[axis] = before, missing - before
                page = np.pad(page, pad, mode="edge")
            else:
                page = page.take(np.arange(CROP_SIDE) + (-missing) // 2, axis=axis)
        return np.ascontiguousarray(page)


@contextlib.contextmanager
def _silence():
    """Keep the decoders' own complaints off stderr: a bad file is one line there, and it is ours."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing, warnings.catch_warnings(action="ignore"):
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _plausible(x, y):
    """um/px of a light microscope's scan, or None where the tags hold a placeholder."""
    return (x, y) if 0.05 <= x <= 4 and 0.05 <= y <= 4 else None


class _Tiff:
    def __init__(self, path):
        from PIL import Image, TiffImagePlugin

        self._path = path
        Image.MAX_IMAGE_PIXELS = None  # a page's size is checked before it is decoded
        try:
            with _silence():
                self._image = TiffImagePlugin.TiffImageFile(path)
        except Exception as error:
            raise UserError(f"{path}: not a TIFF that can be read ({brief(error)}); write the stack again") from None
        self.um_per_px = None
        um_per_unit = {2: 25400.0, 3: 10000.0}.get(self._image.tag_v2.get(TiffImagePlugin.RESOLUTION_UNIT, 2))
        x, y = (float(self._image.tag_v2.get(tag, 0) or 0) for tag in (282, 283))
        if um_per_unit and x > 0 and y > 0:
            self.um_per_px = _plausible(um_per_unit / x, um_per_unit / y)

    def pages(self):
        number = 0
        while True:
            try:
                with _silence():
                    self._image.seek(number)
            except EOFError:
                return
            except Exception as error:
                raise self._broken(number, error) from None
            _check_size(self._path, number + 1, *self._image.size)
            try:
                with _silence():
                    page = self._image
                    if page.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "LA"):
                        page = page.convert("RGB")
                    page = np.asarray(page)
            except Exception as error:
                raise self._broken(number, error) from None
            yield page
            number += 1

    def _broken(self, number, error):
        return UserError(
            f"{self._path}: page {number + 1} cannot be decoded ({brief(error)}); "
            "the file is truncated or damaged, copy it again"
        )


class _Mha:
    def __init__(self, path):
        import SimpleITK as sitk  # 0.3 s that a TIFF need not pay

        self._path = path
        self._reader = sitk.ImageFileReader()
        self._reader.SetFileName(str(path))
        self._reader.SetImageIO("MetaImageIO")
        try:
            with _silence():
                self._reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError(f"{path}: not a MetaImage that can be read ({brief(error)}); write it again") from None
        self._size = self._reader.GetSize()
        if len(self._size) not in (2, 3):
            raise UserError(f"{path}: {len(self._size)} dimensions, 2 or 3 (pages) expected; write the stack again")
        x, y = self._reader.GetSpacing()[:2]
        self.um_per_px = _plausible(x * 1000, y * 1000)

    def pages(self):
        import SimpleITK as sitk

        pages = self._size[2] if len(self._size) == 3 else 1
        _check_size(self._path, 1, *self._size[:2])
        page_bytes = self._size[0] * self._size[1] * self._reader.GetNumberOfComponents() * 2
        pages_a_block = max(1, BLOCK_BYTES // page_bytes)
        for first in range(0, pages, pages_a_block):
            count = min(pages_a_block, pages - first)
            if len(self._size) == 3:
                self._reader.SetExtractIndex((0, 0, first))
                self._reader.SetExtractSize((*self._size[:2], count))
            try:
                with _silence():
                    block = sitk.GetArrayFromImage(self._reader.Execute())
            except RuntimeError as error:
                raise UserError(
                    f"{self._path}: pages {first + 1} to {first + count} cannot be decoded ({brief(error)}); "
                    "the file is truncated or damaged, copy it again"
                ) from None
            yield from block if len(self._size) == 3 else [block]


def _unusable(path, number, reason):
    return UserError(f"{path}: page {number} cannot be used ({reason}); write the stack again")


def _check_size(path, number, width, height):
    """Refuse a page before it is decoded, because its memory grows with its size."""
    if not 0 < min(width, height) <= max(width, height) <= LONGEST_SIDE:
        raise _unusable(path, number, f"{width} x {height} px is no crop of one figure")
