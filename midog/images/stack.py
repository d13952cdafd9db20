"""A stack of crops, one page a mitotic figure, read page by page."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief
from midog.images import metaimage, tiff
from midog.images.level import Page, UnsupportedError, plausible
from midog.images.slide import check_not_empty

CROP_SIDE = 128  # px, the side of a page in MIDOG 2025
CROP_UM_PER_PX = 0.25  # so that a page shows 32 um
LONGEST_SIDE = 4096  # px; a longer page is a region or a slide, not a crop

logger = logging.getLogger(__name__)


class Stack:
    """The pages of one file, in page order.

    Args:
        path: multi-page `.tif`/`.tiff`, or `.mha` of two or three dimensions.

    Attributes:
        um_per_px: (x, y) as the file says, or None.

    Iterating gives uint8 (128, 128, 3) RGB arrays; only one page is in memory. What was changed on reading is logged
    as a warning, once.

    Raises:
        UserError: on opening or while iterating, if a page cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._logged: set[str] = set()
        check_not_empty(self.path)
        self._format = metaimage if self.path.suffix.lower() == ".mha" else tiff
        try:
            with warnings.catch_warnings(action="ignore"):
                self.um_per_px = plausible(self._format.read_spacings(self.path))
        except UnsupportedError as reason:
            raise UserError(f"{self.path}: {reason}; write the stack again") from None
        except Exception as error:  # a damaged file can make a decoder raise anything
            kind = "MetaImage" if self._format is metaimage else "TIFF"
            raise UserError(
                f"{self.path}: not a {kind} that can be read ({brief(error)}); write the stack again"
            ) from None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        pages = self._format.read_pages(self.path)
        number = 0
        while True:
            number += 1
            try:
                with warnings.catch_warnings(action="ignore"):
                    page = next(pages, None)
                    if page is None:
                        return
                    _check_size(*page.size)
                    pixels = page.read()
            except UnsupportedError as reason:
                raise UserError(
                    f"{self.path}: page {number} cannot be used ({reason}); write the stack again"
                ) from None
            except Exception as error:
                raise UserError(
                    f"{self.path}: page {number} cannot be decoded ({brief(error.__cause__ or error)}); "
                    "the file is truncated or damaged, copy it again"
                ) from None
            self._log_conversions(page)
            yield self._to_crop(pixels)

    def _log_conversions(self, page: Page) -> None:
        if page.bits > 8:
            self._log_once("depth", f"{page.bits}-bit pages, scaled to 8 bit")
        if page.has_alpha:
            self._log_once("alpha", "transparency dropped")

    def _log_once(self, kind: str, text: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning(f"{self.path.name}: {text}")

    def _to_crop(self, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
        self._log_once("size", f"pages of {width} x {height} px instead of {CROP_SIDE} x {CROP_SIDE}: {how}")
        from PIL import Image

        size = max(1, round(width * scale_x)), max(1, round(height * scale_y))
        scaled = np.asarray(Image.fromarray(page).resize(size, Image.Resampling.BICUBIC))
        for axis in (0, 1):
            missing = CROP_SIDE - scaled.shape[axis]
            if missing > 0:
                before = missing // 2
                pad = [(0, 0)] * 3
                pad[axis] = before, missing - before
                scaled = np.pad(scaled, pad, mode="edge")
            else:
                scaled = scaled.take(np.arange(CROP_SIDE) + (-missing) // 2, axis=axis)
        return np.ascontiguousarray(scaled)


def _check_size(width: int, height: int) -> None:
    """Refuse a page before it is decoded, because its memory grows with its size."""
    if not 0 < min(width, height) <= max(width, height) <= LONGEST_SIDE:
        raise UnsupportedError(f"{width} x {height} px is no crop of one figure")
