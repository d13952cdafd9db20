"""Which tiles of an image to read: their sides, their places, their pixels, and whether they hold tissue."""

import logging
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from midog.images.slide import Slide

SIDE_STEP = 32  # px; a tile's sides are multiples of it, for the sake of detectors' coarsest maps
BLOCK = 16  # px, about a third of a mitotic figure at .25 um/px
STEP = 4  # px; every fourth pixel of every fourth row is looked at
MIN_RANGE = 10  # grey levels
COARSE_RANGE = 5  # grey levels, in a coarser level, whose compression may have flattened what is faint
COARSENESS = 1.5  # px of the image a px; a level that is finer costs more than it saves
AUDIT = 16  # of so many tiles that a coarser level shows as glass, one is read all the same
CLEAR_RANGE = 20  # grey levels; a speck of a few px, which a coarser level loses rightly, gives less

logger = logging.getLogger(__name__)


def fitted(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> tuple[int, int]:
    """The sides of tiles, up to a quarter larger than asked for, that cover an image with the fewest pixels.

    Args:
        size: (width, height) of the image, px.
        tile: (width, height) asked for, px, multiples of `SIDE_STEP`.
        overlap: as `grid` takes it.

    Returns:
        (width, height), px; of equally good ones those nearest to the sides asked for. No larger than the image, but
        for what fills a multiple of `SIDE_STEP`.
    """
    width, height = (_fitted(length, side, overlap) for length, side in zip(size, tile, strict=True))
    return width, height


def _fitted(length: int, side: int, overlap: float) -> int:
    whole = -(-length // SIDE_STEP) * SIDE_STEP
    sides = range(min(side, whole), min(side * 5 // 4, whole) + 1, SIDE_STEP)
    return min(sides, key=lambda each: len(_starts(length, each, overlap)) * each)


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
    return _range(pixels, BLOCK, STEP) >= MIN_RANGE


def _range(pixels: NDArray[np.uint8], block: int, step: int) -> float:
    """Grey levels of green from the darkest to the brightest of the blocks of a side, by the mean of every step-th."""
    rows, columns = pixels.shape[0] // block, pixels.shape[1] // block
    green = pixels[: rows * block : step, : columns * block : step, 1]
    means = green.reshape(rows, block // step, columns, block // step).mean(axis=(1, 3))
    return float(np.ptp(means))


def tiles_with_tissue(
    slide: Slide, places: Iterable[NDArray[np.int64]], tile: tuple[int, int]
) -> Iterator[tuple[tuple[int, int], NDArray[np.uint8]]]:
    """Read tiles, without those that are glass in a coarser level of the slide's pyramid.

    Such a level may be blank, damaged or another picture's. So of the tiles that it shows as glass, one in `AUDIT` and,
    at the end, those beside tissue are read all the same. If one of them clearly has tissue, or nothing that the level
    shows has any, the level is not believed, and all that was left out is read.

    Args:
        slide: what they are cut from; without a pyramid all of them are read.
        places: left and top of each, px, as `grid` gives them.
        tile: (width, height), px.

    Yields:
        (left, top), and uint8 (height, width, 3), of each that `has_tissue`.

    Raises:
        UserError: they cannot be decoded.
    """
    tissue: list[tuple[int, int]] = []
    left_out: list[tuple[int, int]] = []
    glass, is_believed = 0, True
    for x, y in places:
        place = int(x), int(y)
        is_glass = is_believed and _is_glass(slide, place, tile)
        glass += is_glass
        if is_glass and glass % AUDIT != 1:
            left_out.append(place)
        elif has_tissue(pixels := read_tile(slide, *place, tile)):
            is_believed &= not (is_glass and _is_clear(pixels, place))
            if not is_glass:
                tissue.append(place)
            yield place, pixels
    near = _touching(tissue, tile)
    left_out.sort(key=lambda place: _cell(place, tile) not in near)
    for place in left_out:
        if is_believed and tissue and _cell(place, tile) not in near:
            return
        if has_tissue(pixels := read_tile(slide, *place, tile)):
            is_believed = is_believed and not _is_clear(pixels, place)
            yield place, pixels


def _cell(place: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """Where a tile begins, in whole tiles."""
    return place[0] // tile[0], place[1] // tile[1]


def _touching(places: Iterable[tuple[int, int]], tile: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells in which any tile begins that touches one of some tiles."""
    cells = {_cell(place, tile) for place in places}
    return {(x + right, y + down) for x, y in cells for right in (-1, 0, 1) for down in (-1, 0, 1)}


def _is_clear(pixels: NDArray[np.uint8], place: tuple[int, int]) -> bool:
    """Whether a tile that was taken for glass has so much tissue that the coarser level must be wrong; then says so."""
    is_clear = _range(pixels, BLOCK, STEP) >= CLEAR_RANGE
    if is_clear:
        logger.warning(
            "a lower level of the pyramid shows glass at x %d, y %d, where tissue is; all tiles are read", *place
        )
    return is_clear


def _is_glass(slide: Slide, place: tuple[int, int], tile: tuple[int, int]) -> bool:
    """Whether a coarser level shows that a tile has no tissue: by the blocks of `has_tissue`, of half the range."""
    if slide.coarseness(STEP) < COARSENESS:
        return False
    return _range(slide.shrunk(*place, *tile, STEP), BLOCK // STEP, 1) < COARSE_RANGE
