"""How densely the mitotic figures lie, as a coloured layer over the slide."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.report.canvas import LEGEND_MIDDLE, MARGIN, TEXT_FONT, LegendEntry, below_header, scale_bar_entry

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

KERNEL_MM = 0.2  # standard deviation of the Gaussian; two thirds of its weight lie within 1.5 of it
CELLS = 400  # of the longer side of the grid
# White to dark by way of yellow and red, ever darker: readable in grey and with any colour vision, and multiplied with
# the grey slide it leaves tissue without figures as it is.
COLOUR_SCALE = ("#ffffff", "#ffeb9c", "#fdae4b", "#ee5030", "#a80f2a", "#560034")
DARKEST = 110  # grey level of the slide's black, so that colours stay visible on dark tissue
BAR = 260, 12  # px


def density_map(places_mm: NDArray[np.float64], size_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Figures per mm2: a Gaussian around each figure, divided by the part of it that the image holds.

    Args:
        places_mm: float (N, 2) from the outer corner of the image's first pixel.
        size_mm: (width, height) of the image.

    Returns:
        float64 (rows, columns), at most `CELLS` a side; a cell's value is that in its centre.
    """
    cell = max(size_mm) / CELLS
    columns, rows = (max(1, round(side / cell)) for side in size_mm)
    edges = [np.linspace(0, side, count + 1) for side, count in zip(size_mm, (columns, rows), strict=True)]
    counts = np.histogram2d(places_mm[:, 1], places_mm[:, 0], (edges[1], edges[0]))[0]
    across, down = (_kernel(edge) for edge in edges)
    steps = [edge[1] - edge[0] for edge in edges]
    inside = down.sum(axis=1)[:, None] * across.sum(axis=1) * steps[0] * steps[1]
    return down @ counts @ across.T / inside


def _kernel(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n): weight of a figure in cell j for the density in cell i, of one axis; the factor cancels."""
    centres = (edges[1:] + edges[:-1]) / 2
    return np.exp(-(((centres[:, None] - centres) / KERNEL_MM) ** 2) / 2)


def scale_top(density: NDArray[np.float64]) -> float:
    """The round number at which the colour scale ends; 1 where there are no figures."""
    highest = float(density.max())
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return power * next(factor for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * power >= highest)


def paint(fraction: NDArray[np.float64]) -> "Image.Image":
    """float (H, W) in [0, 1] of the colour scale -> RGB."""
    from PIL import Image

    stops = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOUR_SCALE])
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(fraction, places, stops[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def density_picture(
    view: NDArray[np.uint8], um_per_px: float, painted: "Image.Image", top: float, title: str
) -> "Image.Image":
    """Lay the density over the slide in grey, below a header with the colour scale.

    Args:
        view: overview, uint8 (height, width, 3).
        um_per_px: of the view, along x.
        painted: the density, as `paint` makes it.
        top: the number at which the colour scale ends.
        title: one line.

    Returns:
        RGB, as high as the view and its header.
    """
    from PIL import Image, ImageChops, ImageFont

    grey = Image.fromarray(view).convert("L").point(lambda value: DARKEST + value * (255 - DARKEST) // 255)
    picture = ImageChops.multiply(grey.convert("RGB"), painted.resize(grey.size, Image.Resampling.BICUBIC))
    font = ImageFont.load_default(TEXT_FONT)
    bar = paint(np.tile(np.linspace(0, 1, BAR[0]), (BAR[1], 1)))
    bar_left = math.ceil(font.getlength("0")) + MARGIN

    def zero(draw: "ImageDraw.ImageDraw", left: float, middle: float) -> None:
        draw.text((left, middle), "0", "black", font, anchor="lm")
        right, reach = left + bar_left + BAR[0], BAR[1] // 2
        draw.rectangle((left + bar_left - 1, middle - reach - 1, right, middle + reach), "#999999")

    unit = f"{top:g} mitotic figures per mm2 (Gaussian kernel, standard deviation {KERNEL_MM:g} mm)"
    legend = [LegendEntry(unit, bar_left + BAR[0] + MARGIN, zero), scale_bar_entry(picture.width, um_per_px)]
    whole = below_header(picture, title, legend)
    whole.paste(bar, (MARGIN + bar_left, LEGEND_MIDDLE - BAR[1] // 2))
    return whole
