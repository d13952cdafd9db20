"""Crops of figures, for Track 2: the pages of a stack, read page by page, or pictures with a crop each."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief
from midog.images import metaimage, tiff
from midog.images.level import Cache, UnsupportedError
from midog.images.picture import open_picture
from midog.images.resolution import AGREEMENT, ASSUMED, READ, Resolution, Spacing, format_spacing, plausible
from midog.images.slide import check_not_empty

CROP_SIDE = 128  # px, the side of a page in MIDOG 2025
CROP_UM_PER_PX = 0.25  # so that a page shows 32 um
LONGEST_SIDE = 4096  # px; a longer page is a region or a slide, not a crop

logger = logging.getLogger(__name__)


class _CropSource:
    """What says each kind of thing about its crops once, and holds nothing open.

    Attributes:
        resolutions: that were taken for the crops, in their order, once they are read.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self.resolutions: list[Resolution] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two crops."""

    def _say(self, name: str, remark: str, kind: str = "") -> None:
        """Log a remark on a file; of a kind only the first."""
        if (kind or remark) not in self._said:
            self._said.add(kind or remark)
            logger.warning(f"{name}: {remark}")

    def _to_crop(
        self, name: str, pixels: NDArray[np.uint8], um_per_px: tuple[float, float] | None
    ) -> NDArray[np.uint8]:
        """Scale and cut (or pad) pixels of another size to the field of view of a crop, 32 um."""
        height, width = pixels.shape[:2]
        self.resolutions.append(_resolution(width, height, um_per_px))
        if (height, width) == (CROP_SIDE, CROP_SIDE):
            if um_per_px and not _is_challenges(um_per_px):
                said = f"{format_spacing(um_per_px)} um/px in the file"
                self._say(name, f"{CROP_SIDE} x {CROP_SIDE} px taken as 32 um, in spite of {said}", "spacing")
            return np.ascontiguousarray(pixels)
        if um_per_px is None:
            scale_x = scale_y = CROP_SIDE / max(height, width)
            how = "the longer side taken as 32 um (the file names no resolution)"
        else:
            scale_x, scale_y = (size / CROP_UM_PER_PX for size in um_per_px)
            how = f"scaled from {format_spacing(um_per_px)} um/px, the central 32 um kept"
        self._say(name, f"crops of {width} x {height} px instead of {CROP_SIDE} x {CROP_SIDE}: {how}", f"size {how}")
        from PIL import Image

        size = max(1, round(width * scale_x)), max(1, round(height * scale_y))
        scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
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


class Stack(_CropSource):
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
        super().__init__()
        self.path = Path(path)
        check_not_empty(self.path)
        self._format = metaimage if self.path.suffix.lower() == ".mha" else tiff
        try:
            with warnings.catch_warnings(action="ignore"):
                found = plausible(self._format.read_spacings(self.path))
                self.um_per_px = found.um_per_px if found else None
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
        self.resolutions = []
        while True:
            number += 1
            try:
                with warnings.catch_warnings(action="ignore"):
                    page = next(pages, None)
                    if page is None:
                        return
                    if page.is_preview:
                        self._say(self.path.name, "pages that show another one in small are left out")
                        continue
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
            for remark in page.remarks:
                self._say(self.path.name, remark)
            yield self._to_crop(self.path.name, pixels, self.um_per_px)


class Crops(_CropSource):
    """Pictures that show one figure each, in the order given.

    Args:
        paths: `.png`, `.jpg`, `.jpeg`, and `.tif` or `.tiff` of a single page; of at least one file.

    Attributes:
        path: the folder of the first file, or the file where it is the only one.
        names: of the files.
        um_per_px: None, because each file has its own.

    Iterating gives uint8 (128, 128, 3) RGB arrays, one a file, as `Stack` does.

    Raises:
        UserError: while iterating, if a file cannot be read.
    """

    um_per_px: tuple[float, float] | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = list(paths)
        self.path = self._paths[0] if len(self._paths) == 1 else self._paths[0].parent
        self.names = [path.name for path in self._paths]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        self.resolutions = []
        for path in self._paths:
            pixels, um_per_px, remarks = _read_crop(path)
            for remark in remarks:
                self._say(path.name, remark)
            yield self._to_crop(path.name, pixels, um_per_px)


def _read_crop(path: Path) -> tuple[NDArray[np.uint8], tuple[float, float] | None, Sequence[str]]:
    """The pixels of a file, its um/px if it says one that can be right, and what was changed on reading."""
    check_not_empty(path)
    read = _read_tiff if path.suffix.lower() in (".tif", ".tiff") else _read_picture
    try:
        with warnings.catch_warnings(action="ignore"):
            pixels, spacings, remarks = read(path)
    except UserError:
        raise
    except UnsupportedError as reason:
        raise UserError(f"{path}: cannot be used ({reason}); write the crop again") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UserError(f"{path}: cannot be read as a crop ({brief(error)}); copy it again") from None
    found = plausible(spacings)
    return pixels, found.um_per_px if found else None, remarks


def _read_tiff(path: Path) -> tuple[NDArray[np.uint8], Sequence[Spacing], Sequence[str]]:
    pages = (page for page in tiff.read_pages(path) if not page.is_preview)
    page = next(pages)
    _check_size(*page.size)
    pixels = page.read()
    if next(pages, None):
        raise UnsupportedError("several pages, one expected")
    return pixels, tiff.read_spacings(path), page.remarks


def _read_picture(path: Path) -> tuple[NDArray[np.uint8], Sequence[Spacing], Sequence[str]]:
    image = open_picture(path, Cache())
    (level,) = image.levels
    _check_size(*level.size)
    return level.read(0, 0, *level.size), image.spacings, image.remarks


def _is_challenges(um_per_px: tuple[float, float]) -> bool:
    return all(abs(step / CROP_UM_PER_PX - 1) <= AGREEMENT for step in um_per_px)


def _resolution(width: int, height: int, um_per_px: tuple[float, float] | None) -> Resolution:
    """What `_CropSource._to_crop` takes for a crop of a size, px, and what its file says."""
    as_said = um_per_px is not None and ((width, height) != (CROP_SIDE, CROP_SIDE) or _is_challenges(um_per_px))
    if um_per_px and as_said:
        return Resolution(um_per_px, READ, "the file")
    step = CROP_SIDE * CROP_UM_PER_PX / max(width, height)
    found = f"{format_spacing(um_per_px)} um/px in the file" if um_per_px else "no resolution in the file"
    return Resolution((step, step), ASSUMED, f"{found}; {max(width, height)} px taken as 32 um")


def _check_size(width: int, height: int) -> None:
    """Refuse a page before it is decoded, because its memory grows with its size."""
    if not 0 < min(width, height) <= max(width, height) <= LONGEST_SIDE:
        raise UnsupportedError(f"{width} x {height} px is no crop of one figure")
