"""The slide in tiles for the page, and which of them a page holds that has no server behind it.

Level k is the slide halved k times; its tile (k, x, y) shows the level-0 px [x * 512 * 2 ** k, (x + 1) * 512 * 2 ** k)
of each axis, 512 x 512 px, white beyond the image. The last level has one tile.
"""

import io
import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midog.images.slide import ArraySlide, Slide
from midog.report.hotspot import Hotspot

TILE = 512  # px
SERVED_QUALITY = 85  # JPEG
QUALITIES = (85, 75, 65, 55)  # of embedded tiles, the best that fits
COARSE_TILES = 16  # a level of so few is embedded whole
CELL_UM = 64.0  # side of the square that is embedded around a candidate
CELL_LEVELS = 3  # of it; from further away a cell is a dot, and the coarse levels show it
SAMPLES = 24  # tiles that are encoded to know how large all become
FILLED = 0.95  # of the budget that a sample may fill


class Place(NamedTuple):
    """A tile's."""

    level: int
    x: int
    y: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


def levels(size: tuple[int, int]) -> int:
    """How many levels an image of (width, height) px has."""
    return ((max(size) - 1) // TILE).bit_length() + 1


def grid(size: tuple[int, int], level: int) -> tuple[int, int]:
    """How many tiles a level has: (columns, rows)."""
    columns, rows = (math.ceil(side / (TILE << level)) for side in size)
    return columns, rows


def pixels_of(slide: Slide, place: Place) -> NDArray[np.uint8]:
    """A tile, uint8 (512, 512, 3).

    Raises:
        UserError: its pixels cannot be decoded.
    """
    side = TILE << place.level
    return slide.shrunk(place.x * side, place.y * side, side, side, 1 << place.level)


def jpeg(pixels: NDArray[np.uint8], quality: int = SERVED_QUALITY) -> bytes:
    """A tile's pixels as it is sent."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def embedded(
    slide: Slide,
    hotspot: Hotspot | None,
    centres: NDArray[np.float64],
    accepted: NDArray[np.bool_],
    budget_bytes: int,
) -> tuple[dict[str, bytes], int]:
    """The tiles of a page that is one file: all coarse ones, the hotspot, and candidates, each with its coarser tiles.

    Between a candidate's and the coarse ones the page enlarges the latter. Quality falls until the hotspot and all
    accepted candidates fit; what does not fit even then is left out: the refused ones first, of them the least probable
    first.

    Args:
        slide: what they are cut from.
        hotspot: shown whole; None without mitotic figures.
        centres: float (N, 2), px, the most probable first.
        accepted: bool (N,).
        budget_bytes: of all tiles; the coarse ones are there in any case.

    Returns:
        JPEG by "level/x/y", and how many candidates are not shown at full resolution.

    Raises:
        UserError: pixels cannot be decoded.
    """
    coarse = next(level for level in range(levels(slide.size)) if math.prod(grid(slide.size, level)) <= COARSE_TILES)
    # Read once, because without a pyramid each level of the whole slide takes as long as to decode all of it.
    whole = ArraySlide(slide.shrunk(0, 0, *slide.size, 1 << coarse))

    def pixels(place: Place) -> NDArray[np.uint8]:
        if place.level < coarse:
            return pixels_of(slide, place)
        return pixels_of(whole, place._replace(level=place.level - coarse))

    def cell(number: int) -> list[Place]:
        reach = CELL_UM / 2 / np.array(slide.um_per_px)
        middle = centres[number] + 0.5
        return _touched(slide.size, np.concatenate([middle - reach, middle + reach]), min(coarse, CELL_LEVELS))

    basis = [
        Place(level, x, y)
        for level in range(coarse, levels(slide.size))
        for x, y in np.ndindex(grid(slide.size, level))
    ]
    window = _touched(slide.size, hotspot.box_px(slide), coarse) if hotspot else []
    figures, others = np.flatnonzero(accepted).tolist(), np.flatnonzero(~accepted).tolist()
    needed = list(dict.fromkeys([*basis, *window, *(place for number in figures for place in cell(number))]))
    quality = _quality(
        [pixels(place) for place in needed[:: max(1, len(needed) // SAMPLES)]], budget_bytes / len(needed)
    )

    tiles = {place: jpeg(pixels(place), quality) for place in basis}
    room = budget_bytes - sum(map(len, tiles.values()))
    for places in chain(([place] for place in window), map(cell, figures), map(cell, others)):
        new = {place: jpeg(pixels(place), quality) for place in places if place not in tiles}
        room -= sum(map(len, new.values()))
        if room < 0:
            break
        tiles |= new
    left_out = sum(not tiles.keys() >= set(cell(number)) for number in range(len(centres)))
    return {str(place): content for place, content in tiles.items()}, left_out


def _touched(size: tuple[int, int], box: NDArray[np.float64], levels: int) -> list[Place]:
    """The tiles of the first levels that a box, px from the outer corner of the first pixel, touches; coarse first."""
    places = []
    for level in reversed(range(levels)):
        last = np.array(grid(size, level)) - 1
        start = np.clip(np.floor(box[:2] / (TILE << level)), 0, last).astype(int)
        end = np.clip(np.ceil(box[2:] / (TILE << level)) - 1, start, last).astype(int)
        places += [Place(level, *map(int, start + step)) for step in np.ndindex(*(end - start + 1))]
    return places


def _quality(samples: Sequence[NDArray[np.uint8]], tile_bytes: float) -> int:
    """The best of `QUALITIES` at which tiles like these have at most so many bytes on average; else the lowest."""
    for quality in QUALITIES:
        if np.mean([len(jpeg(pixels, quality)) for pixels in samples]) <= FILLED * tile_bytes:
            return quality
    return QUALITIES[-1]
