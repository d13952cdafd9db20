"""Which tiles of an image to read: their places, their pixels, and whether they hold tissue."""

import math

import numpy as np
from numpy.typing import NDArray

from midog.images.slide import Slide

BLOCK = 16  # px, about a third of a mitotic figure at .25 um/px
STEP = 4  # px; every fourth pixel of every fourth row is looked at
MIN_RANGE = 10  # grey levels


def grid(width: int, height: int, tile: tuple[int, int] = (512, 512), overlap: float = 0.2) -> NDArray[np.int64]:
    """Places of the fewest tiles that cover an image with the overlap asked for, evenly spread.

    Args:
        width, height: px.
        tile: (width, height), px.
        overlap: least fraction of a tile's side that neighbours have in common, in [0, 1).

    Returns:
        int64 (N, 2), left and top in px, row by row. An image smaller than a tile has one, at 0, in that axis.
    """
    columns, rows = _starts(width, tile[0], overlap), _starts(height, tile[1], overlap)
    return np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], axis=1)


def _starts(length: int, side: int, overlap: float) -> NDArray[np.int64]:
    longest_step = max(side - math.ceil(side * overlap), 1)
    rest = max(length - side, 0)
    steps = math.ceil(rest / longest_step)
    return np.arange(steps + 1, dtype=np.int64) * rest // max(steps, 1)


def read_tile(slide: Slide, x: int, y: int, tile: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a tile; where it leaves the image, that is mirrored.

    Args:
        slide: what it is cut from.
        x, y: left and top, px.
        tile: (width, height), px.

    Returns:
        uint8 (height, width, 3).
    """
    return slide.read_reflected(x, y, *tile)


def has_tissue(pixels: NDArray[np.uint8]) -> bool:
    """False only for what cannot hold a mitotic figure: glass, white, one colour.

    A figure is dark on lighter cytoplasm, so the brightest and the darkest 16 px block of its tile differ. Means of
    blocks forget noise of sensor and JPEG; green is the channel that both stains absorb.

    The margin: 10 grey levels are asked for. 797 labelled cells of ICPR 2012, MITOS-ATYPIA 2014 and a canine mammary
    carcinoma have 130 or more in a tile of 512 px, and 28 or more in the 64 px around them alone; with colours faded
    half way to white it is 65 and 14. Glass with noise of +-5 has 6. Glass with dust or a loose cell is not skipped.

    Args:
        pixels: uint8 (H, W, 3), at least 16 px a side.

    Returns:
        bool.
    """
    rows, columns = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    green = pixels[: rows * BLOCK : STEP, : columns * BLOCK : STEP, 1]
    means = green.reshape(rows, BLOCK // STEP, columns, BLOCK // STEP).mean(axis=(1, 3))
    return bool(np.ptp(means) >= MIN_RANGE)
