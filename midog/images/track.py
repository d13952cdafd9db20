"""Which track an image on disk belongs to, by what it looks like."""

from pathlib import Path

from midog import job
from midog.errors import UserError, brief
from midog.images import metaimage, tiff
from midog.images.stack import CROP_SIDE

LARGEST_CROP_SIDE = 512  # px; crops scanned more finely are larger than the platform's


def track_of_image(path: Path) -> int:
    """1 for a region or slide, 2 for a stack of crops.

    Raises:
        UserError: the file cannot be read, or may be either.
    """
    if path.is_dir() or path.suffix.lower() not in job.IMAGE_SUFFIXES:
        return 1  # only these hold pages
    first_page = metaimage.first_page if path.suffix.lower() == ".mha" else tiff.first_page
    try:
        size, several = first_page(path)
    except Exception as error:  # a damaged file can make a library raise anything
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the path, or copy the file again") from None
    small = max(size) <= LARGEST_CROP_SIDE
    if size == (CROP_SIDE, CROP_SIDE) or small and several:
        return 2
    if small or several:
        pages = "several pages" if several else "one page"
        raise UserError(
            f"{path}: {pages} of {size[0]} x {size[1]} px may be a region or a stack of crops; "
            "say --track 1 to detect, --track 2 to classify"
        )
    return 1


def check_mpp(path: Path, um_per_px: float | None, track: int | None) -> None:
    """Refuse a spacing for a stack, whose crops' own is part of what they are."""
    if um_per_px is not None and track == 2:
        raise UserError(f"{path}: the resolution of a stack is read from the file; leave --mpp out")
