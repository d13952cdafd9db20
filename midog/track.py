"""Which track an image on disk belongs to, by what it looks like."""

import math
from itertools import islice

from midog import job
from midog.errors import UserError, brief
from midog.stack import CROP_SIDE

LARGEST_CROP_SIDE = 512  # px; crops scanned more finely are larger than the platform's


def track_of_image(path):
    """1 for a region or slide, 2 for a stack of crops.

    Raises:
        UserError: the file cannot be read, or may be either.
    """
    if path.is_dir() or path.suffix.lower() not in job.IMAGE_SUFFIXES:
        return 1  # only these hold pages
    sides, several = first_page(path)
    small = max(sides) <= LARGEST_CROP_SIDE
    if sides == (CROP_SIDE, CROP_SIDE) or small and several:
        return 2
    if small or several:
        pages = "several pages" if several else "one page"
        raise UserError(
            f"{path}: {pages} of {sides[0]} x {sides[1]} px may be a region or a stack of crops; "
            "say --track 1 to detect, --track 2 to classify"
        )
    return 1


def first_page(path):
    """(width, height) px of the first page, and whether another one of this size follows."""
    try:
        if path.suffix.lower() == ".mha":
            import SimpleITK as sitk

            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            width, height, *pages = reader.GetSize()
            return (width, height), math.prod(pages) > 1
        import tifffile

        with tifffile.TiffFile(path) as tif:
            first, *second = islice(tif.pages, 2)
            return (first.imagewidth, first.imagelength), any(page.shape == first.shape for page in second)
    except Exception as error:  # a damaged file can make a library raise anything
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the path, or copy the file again") from None


def check_mpp(path, um_per_px, track):
    """Refuse a spacing for a stack, whose crops' own is part of what they are."""
    if um_per_px is not None and track == 2:
        raise UserError(f"{path}: the resolution of a stack is read from the file; leave --mpp out")
