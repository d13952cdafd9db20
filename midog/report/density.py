"""How densely the mitotic figures lie, as a coloured layer over the slide: their number in a field around each place.

The field is round, as a microscope's: a place's colour says what a reader would count who has it in the middle.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.report.canvas import (
    LEGEND_MIDDLE,
    MARGIN,
    TEXT_FONT,
    LegendEntry,
    below_header,
    enlarged,
    scale_bar_entry,
)

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

CELLS = 400  # of the longer side of the grid
ROUND = 1, 1.5, 2, 3, 4, 5, 6, 8, 10  # where the colour scale may end, times a power of ten
# White to dark by way of yellow and red, ever darker: readable in grey and with any colour vision, and multiplied with
# the grey slide it leaves tissue without figures as it is.
COLOUR_SCALE = ("#ffffff", "#ffeb9c", "#fdae4b", "#ee5030", "#a80f2a", "#560034")
DARKEST = 110  # grey level of the slide's black, so that colours stay visible on dark tissue
BAR = 260, 12  # px


def field_map(
    places_mm: NDArray[np.float64], size_mm: Sequence[float] | NDArray[np.float64], diameter_mm: float
) -> NDArray[np.int32]:
    """How many figures a round field has whose middle is the cell's; those on its edge count.

    A field of cells is a run of columns in each row: each figure adds 1 where its run begins and takes it back behind
    its end, and the sums along the rows are the numbers. 10,000 figures take some hundredths of a second.

    Args:
        places_mm: float (N, 2) from the outer corner of the image's first pixel; those outside do not count.
        size_mm: (width, height) of the image.
        diameter_mm: of the field.

    Returns:
        int32 (rows, columns), at most `CELLS` a side.
    """
    width, height = size_mm
    cell = max(size_mm) / CELLS
    columns, rows = (max(1, math.floor(side / cell + 0.5)) for side in size_mm)
    across, down = width / columns, height / rows
    x, y = places_mm[((places_mm >= 0) & (places_mm <= size_mm)).all(axis=1)].T
    radius = diameter_mm / 2
    changes = np.zeros((rows, columns + 1), np.int32)
    for row in range(rows):
        rest = radius * radius - ((row + 0.5) * down - y) ** 2
        reached = rest >= 0
        reach = np.sqrt(rest[reached])
        first = np.maximum(np.ceil((x[reached] - reach) / across - 0.5), 0)
        last = np.minimum(np.floor((x[reached] + reach) / across - 0.5), columns - 1)
        begin, end = (np.bincount(ends.astype(np.int64), minlength=columns + 1) for ends in (first, last + 1))
        changes[row] = begin - end
    return changes.cumsum(axis=1, dtype=np.int32)[:, :columns]


def scale_top(field: NDArray[np.int32]) -> int:
    """The round number at which the colour scale ends; 1 where there are no figures."""
    highest = max(int(field.max()), 1)
    power = 10 ** (len(str(highest)) - 1)
    return next(int(factor * power) for factor in ROUND if factor * power >= highest)


def paint(fraction: NDArray[np.float64]) -> "Image.Image":
    """float (H, W) in [0, 1] of the colour scale -> RGB."""
    from PIL import Image

    stops = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOUR_SCALE])
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(fraction, places, stops[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def density_picture(
    view: NDArray[np.uint8],
    um_per_px: float,
    field: NDArray[np.int32],
    diameter_mm: float,
    title: str,
    tissue: NDArray[np.bool_],
) -> "Image.Image":
    """Lay the numbers over the slide in grey, where there is tissue, below a header with the colour scale.

    Args:
        view: overview, uint8 (height, width, 3).
        um_per_px: of the view, along x.
        field: of `field_map`.
        diameter_mm: of its field.
        title: one line.
        tissue: bool (rows, columns) over the whole image, of any size.

    Returns:
        RGB, as high as the view and its header.
    """
    from PIL import Image, ImageChops, ImageFont

    top = scale_top(field)
    grey = Image.fromarray(view).convert("L").point(lambda value: DARKEST + value * (255 - DARKEST) // 255)
    painted = paint(field / top).resize(grey.size, Image.Resampling.BICUBIC)
    painted.paste("white", mask=ImageChops.invert(enlarged(tissue, grey.size)))
    picture = ImageChops.multiply(grey.convert("RGB"), painted)
    font = ImageFont.load_default(TEXT_FONT)
    bar = paint(np.tile(np.linspace(0, 1, BAR[0]), (BAR[1], 1)))
    bar_left = math.ceil(font.getlength("0")) + MARGIN

    def zero(draw: "ImageDraw.ImageDraw", left: float, middle: float) -> None:
        draw.text((left, middle), "0", "black", font, anchor="lm")
        right, reach = left + bar_left + BAR[0], BAR[1] // 2
        draw.rectangle((left + bar_left - 1, middle - reach - 1, right, middle + reach), "#999999")

    area = math.pi * diameter_mm**2 / 4
    unit = f"{top} mitotic figures in a round field of {diameter_mm:g} mm ({area:.3g} mm2) around each place of tissue"
    legend = [LegendEntry(unit, bar_left + BAR[0] + MARGIN, zero), scale_bar_entry(picture.width, um_per_px)]
    whole = below_header(picture, title, legend)
    whole.paste(bar, (MARGIN + bar_left, LEGEND_MIDDLE - BAR[1] // 2))
    return whole
