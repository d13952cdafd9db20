"""Which track an image on disk belongs to, by what it looks like."""

import warnings
from functools import lru_cache
from pathlib import Path

from midog import job
from midog.errors import UserError, brief
from midog.images import metaimage, tiff

LARGEST_CROP_SIDE = 512  # px, of a stack; crops scanned more finely are larger than the platform's
CROP_SIDES = 64, 256  # px, of a file that is one crop
MOST_CROP_BYTES = 2 << 20  # of such a file, even with 16 bits and without compression
PICTURES, TIFFS = {".png", ".jpg", ".jpeg"}, {".tif", ".tiff"}


def track_of_image(path: Path) -> int:
    """1 for a region or slide, 2 for a stack of crops or a crop in a file of its own.

    Raises:
        UserError: the file cannot be read, or may be either.
    """
    if is_crop(path):
        return 2
    if path.is_dir() or path.suffix.lower() not in job.IMAGE_SUFFIXES:
        return 1  # only these hold pages
    first_page = metaimage.first_page if path.suffix.lower() == ".mha" else tiff.first_page
    try:
        size, several = first_page(path)
    except Exception as error:  # a damaged file can make a library raise anything
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the path, or copy the file again") from None
    if not several:
        return 2 if _is_crop_size(*size) else 1
    if max(size) > LARGEST_CROP_SIDE:
        raise UserError(
            f"{path}: several pages of {size[0]} x {size[1]} px may be a region or a stack of crops; "
            "say --track 1 to detect, --track 2 to classify"
        )
    return 2


def is_crop(path: Path) -> bool:
    """Whether a file is one crop of a figure: a square picture of 64 to 256 px that can be decoded, and nothing more.

    A damaged one is none, so that it costs no other crop its result: as a region, it is refused by its name.
    """
    try:
        stat = path.stat()
    except OSError:
        return False
    if path.suffix.lower() not in PICTURES | TIFFS or stat.st_size > MOST_CROP_BYTES:
        return False
    return _holds_crop(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=1 << 16)
def _holds_crop(path: Path, stamp: tuple[int, int]) -> bool:
    """`stamp` tells a file that was written anew; finding, binding, reading and drawing a folder of crops all ask."""
    suffix = path.suffix.lower()
    try:
        with warnings.catch_warnings(action="ignore"):
            return (_is_crop_picture if suffix in PICTURES else _is_crop_tiff)(path)
    except Exception:  # a damaged file can make a library raise anything
        return False


def _is_crop_picture(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as picture:
        if not _is_crop_size(*picture.size):
            return False
        picture.load()
    return True


def _is_crop_tiff(path: Path) -> bool:
    pages = 0
    for page in tiff.read_pages(path):
        if not page.is_preview:
            pages += 1
            if pages > 1 or not _is_crop_size(*page.size):
                return False
            page.read()
    return pages == 1


def _is_crop_size(width: int, height: int) -> bool:
    return width == height and CROP_SIDES[0] <= width <= CROP_SIDES[1]


def check_mpp(path: Path, um_per_px: float | None, track: int | None) -> None:
    """Refuse a spacing for a stack, whose crops' own is part of what they are."""
    if um_per_px is not None and track == 2:
        raise UserError(f"{path}: the resolution of a stack is read from the file; leave --mpp out")
