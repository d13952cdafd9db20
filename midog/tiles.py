"""Which tiles of a slide to read: the grid, its overlap, and the tissue filter."""

import math

import numpy as np

WHITE = 255
DARKER_THAN_GLASS = 40  # grey levels below white of a pixel's darkest channel; glass with noise stays under 25
LEAST_SHARE = 0.0005  # of such pixels: 131 in a tile of 512 x 512, a quarter of one nucleus


def grid(width, height, tile=512, overlap=0.2):
    """The fewest tiles that cover an image with at least the overlap between neighbours (paper: 512 px, 20 %).

    Args:
        width, height: px of the image.
        tile: px of a tile's side.
        overlap: share of the side, in [0, 1).

    Returns:
        int (N, 2): left and top of each, row by row, evenly spread, none twice. A side shorter than a tile has one
        tile at 0, which reaches beyond the image.
    """
    left, top = np.meshgrid(_starts(width, tile, overlap), _starts(height, tile, overlap))
    return np.stack([left.ravel(), top.ravel()], 1)


def _starts(length, tile, overlap):
    if length <= tile:
        return np.zeros(1, np.int64)
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    return np.arange(count) * (length - tile) // (count - 1)


def read_tile(slide, x, y, tile):
    """uint8 (tile, tile, 3) of a slide (see `midog.slide`), white where it reaches beyond the image."""
    width, height = slide.size
    pixels = slide.read(x, y, min(tile, width - x), min(tile, height - y))
    if pixels.shape[:2] == (tile, tile):
        return pixels
    padded = np.full((tile, tile, 3), WHITE, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def has_tissue(pixels):
    """Whether a tile may hold tissue: uint8 (H, W, 3) -> bool, from every fourth pixel of every fourth row.

    Meant never to skip a figure: in tiles of 512 px around the labelled figures of ICPR 2012 and MITOS-ATYPIA 2014
    the share of dark pixels is at least .36, and .28 when every colour is faded half-way to white: 700 and 500 times
    what is asked for.
    """
    return bool((pixels[::4, ::4].min(2) < WHITE - DARKER_THAN_GLASS).mean() >= LEAST_SHARE)
